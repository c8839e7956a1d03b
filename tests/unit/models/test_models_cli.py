"""`rayburst models` from publish to rollback, and what it says where something is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from published_models import save_run
from typer.testing import CliRunner

from rayburst.errors import VersionNotFoundError
from rayburst.models import ModelRegistry
from rayburst.models.models_cli import app


def call(store: Path, *words: str, status: int = 0) -> str:
    done = CliRunner().invoke(app, [*words, "--store", str(store)], catch_exceptions=False)
    assert done.exit_code == status, done.output
    return " ".join(done.output.split())


def test_a_model_is_published_promoted_and_rolled_back(tmp_path: Path) -> None:
    for step in (10, 20):
        save_run(str(tmp_path), "first", step=step)
        told = call(tmp_path, "publish", f"first@{step}", "--name", "gpt")
        assert f"gpt@{step // 10} is {tmp_path}/runs/first@{step}" in told
        call(tmp_path, "promote", f"gpt@{step // 10}")
    assert "is back at gpt@1 (move 3)" in call(tmp_path, "rollback", "gpt", "--why", "it errs")
    listed = call(tmp_path, "ls")
    assert "gpt@2" in listed and "gpt@1" in listed and "production" in listed
    shown = call(tmp_path, "show", "gpt")
    assert "gpt@1" in shown and "val_bits_per_byte: 3.5" in shown and "not measured" in shown
    assert "gpt@2 is whole: 1 files" in call(tmp_path, "verify", "gpt@2")
    assert ModelRegistry.open(str(tmp_path)).history("gpt")[-1].why == "it errs"


def test_damage_is_listed_beside_what_is_whole(tmp_path: Path) -> None:
    for step in (10, 20):
        save_run(str(tmp_path), "first", step=step)
        call(tmp_path, "publish", f"first@{step}", "--name", "gpt")
    (tmp_path / "models/gpt/versions/000000000002.json").write_text("{}")
    told = call(tmp_path, "ls", "gpt", status=1)
    assert "damaged" in told and "gpt@1" in told


def test_an_unknown_model_lists_the_known_ones(tmp_path: Path) -> None:
    save_run(str(tmp_path), "first", step=10)
    call(tmp_path, "publish", "first", "--name", "gpt")
    for words in (("ls", "gtp"), ("show", "gtp@1"), ("rollback", "gtp")):
        with pytest.raises(VersionNotFoundError, match=r"no model 'gtp'.*models: gpt"):
            call(tmp_path, *words)


def test_a_store_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(VersionNotFoundError, match="there is no folder"):
        call(tmp_path / "typo", "ls")
    assert not (tmp_path / "typo").exists()
