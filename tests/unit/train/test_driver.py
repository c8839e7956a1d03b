"""How job scripts end, and what drivers say where nothing has been saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

import pytest

from rayburst.checkpoint.store import ObjectStore
from rayburst.errors import CheckpointError, DataError, StoreError
from rayburst.train import driver
from rayburst.train.driver import exit_code, last_checkpoint, tell_report, tell_where
from rayburst.train.ray_list import LIST


def raising(error: Exception) -> Any:
    def work() -> NoReturn:
        raise error

    return work


def test_a_job_prints_its_result_as_the_last_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("x.py", lambda: {"steps": 3}) == 0
    assert capsys.readouterr().out == 'RESULT {"steps": 3}\n'


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (ValueError("lr=-1"), 2, "x.py: lr=-1\n"),
        (DataError("nothing there"), 2, "x.py: nothing there\n"),
        (StoreError("it is away"), 1, "x.py: failed\nit is away\n"),
    ],
)
def test_wrong_input_and_failures_have_codes_of_their_own(
    error: Exception, code: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code("x.py", raising(error), wrong=(DataError,)) == code
    assert capsys.readouterr() == ("", told)


def test_a_mistake_of_ours_keeps_its_traceback() -> None:
    with pytest.raises(KeyError):
        exit_code("x.py", raising(KeyError("a")))


def test_a_run_without_checkpoints_says_so_and_rays_broken_list_is_put_aside(
    tmp_path: Path,
) -> None:
    folder, said = ObjectStore.open(str(tmp_path)), []
    folder.put(LIST, b"{cut o")
    tell_where(folder, said.append)
    assert said[0].startswith("Ray's list of checkpoints is unusable (it is cut off")
    assert said[1:] == [f"checkpoints go to {folder.uri}"]
    with pytest.raises(CheckpointError, match="no whole checkpoint"):
        last_checkpoint(folder)


def test_a_run_whose_log_cannot_be_read_ends_with_an_empty_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(driver, "read_folder", lambda folder: raising(StoreError("it is away"))())
    said: list[str] = []
    assert tell_report(ObjectStore.open(str(tmp_path)), said.append).checkpoints == 0
    assert said
    assert "the run log cannot be read: it is away" in caplog.text
