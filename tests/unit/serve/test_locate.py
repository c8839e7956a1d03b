"""Which checkpoint is served."""

from __future__ import annotations

from pathlib import Path

import pytest
from trained_runs import save_model

from rayburst.errors import CheckpointError
from rayburst.serve.locate import locate


def test_what_is_asked_for_comes_first(tmp_path: Path) -> None:
    env = {"RAYBURST_MODEL": "s3://b/runs/env", "RAYBURST_STORE": str(tmp_path)}
    assert locate("s3://b/runs/asked", env) == "s3://b/runs/asked"
    assert locate(None, env) == "s3://b/runs/env"


def test_the_newest_whole_checkpoint_of_the_run_that_saved_last(tmp_path: Path) -> None:
    save_model(f"file://{tmp_path}/runs/old", step=900)
    save_model(f"file://{tmp_path}/runs/new", step=100)
    whole, _ = save_model(f"file://{tmp_path}/runs/new", step=200)
    save_model(f"file://{tmp_path}/runs/new", step=300)
    manifests = tmp_path / "runs" / "new" / "checkpoints" / "manifests"
    cut_off = manifests / "000000000300.json"
    cut_off.write_bytes(cut_off.read_bytes()[:-40])
    assert locate(None, {"RAYBURST_STORE": f"file://{tmp_path}"}) == whole


def test_nothing_to_serve_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="set RAYBURST_MODEL"):
        locate(None, {})
    with pytest.raises(CheckpointError, match=r"no whole checkpoint: train one with"):
        locate(None, {"RAYBURST_STORE": str(tmp_path)})
