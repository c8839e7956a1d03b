"""Which checkpoint is served."""

from __future__ import annotations

from pathlib import Path

import pytest

from rayburst.checkpoint.store import ObjectStore
from rayburst.errors import CheckpointError
from rayburst.serve.locate import locate
from rayburst.train.checkpoints import checkpoint_name, save


def _save(root: Path, run: str, *, step: int, at: float) -> str:
    """A complete checkpoint; returns its address."""
    store = ObjectStore.open(f"file://{root}/runs/{run}")
    return save(store, checkpoint_name(step, at), {"model": {}}, {"step": step})


def test_what_is_asked_for_comes_first(tmp_path: Path) -> None:
    env = {"RAYBURST_MODEL": "s3://b/runs/env", "RAYBURST_STORE": str(tmp_path)}
    assert locate("s3://b/runs/asked", env) == "s3://b/runs/asked"
    assert locate(None, env) == "s3://b/runs/env"


def test_the_newest_complete_checkpoint_of_the_run_that_saved_last(tmp_path: Path) -> None:
    _save(tmp_path, "old", step=900, at=1_700_000_100)
    _save(tmp_path, "new", step=100, at=1_700_000_200)
    whole = _save(tmp_path, "new", step=200, at=1_700_000_300)
    cut_off = _save(tmp_path, "new", step=300, at=1_700_000_400)
    Path(cut_off.removeprefix("file://"), "model.pt").write_bytes(b"half")
    (tmp_path / "runs" / "new" / "log").mkdir()
    (tmp_path / "runs" / "new" / "log" / "meta.json").write_text("{}")
    assert locate(None, {"RAYBURST_STORE": f"file://{tmp_path}"}) == whole


def test_a_run_without_a_complete_checkpoint_is_passed_over(tmp_path: Path) -> None:
    whole = _save(tmp_path, "old", step=900, at=1_700_000_100)
    broken = _save(tmp_path, "new", step=100, at=1_700_000_200)
    Path(broken.removeprefix("file://"), "model.pt").unlink()
    assert locate(None, {"RAYBURST_STORE": f"file://{tmp_path}/"}) == whole


def test_nothing_to_serve_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="set RAYBURST_MODEL"):
        locate(None, {})
    with pytest.raises(CheckpointError, match=r"no complete checkpoint: train one with"):
        locate(None, {"RAYBURST_STORE": str(tmp_path)})
