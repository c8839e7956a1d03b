"""Which checkpoint is served."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rayburst.errors import CheckpointError
from rayburst.serve.locate import locate


def _checkpoint(root: Path, name: str, *, at: int, files: tuple[str, ...]) -> None:
    folder = root / "runs" / name
    folder.mkdir(parents=True)
    for file in files:
        (folder / file).write_bytes(b"x")
        os.utime(folder / file, (at, at))


BOTH = ("meta.json", "model.pt")


def test_what_is_asked_for_comes_first(tmp_path: Path) -> None:
    env = {"RAYBURST_MODEL": "s3://b/runs/env", "RAYBURST_STORE": str(tmp_path)}
    assert locate("s3://b/runs/asked", env) == "s3://b/runs/asked"
    assert locate(None, env) == "s3://b/runs/env"


def test_the_newest_complete_checkpoint_of_any_run(tmp_path: Path) -> None:
    _checkpoint(tmp_path, "old/checkpoint_0009", at=100, files=BOTH)
    _checkpoint(tmp_path, "new/checkpoint_0001", at=200, files=BOTH)
    _checkpoint(tmp_path, "new/checkpoint_0002", at=300, files=BOTH)
    _checkpoint(tmp_path, "new/checkpoint_0003", at=400, files=("meta.json",))
    _checkpoint(tmp_path, "new/log", at=500, files=BOTH)
    uri = locate(None, {"RAYBURST_STORE": f"file://{tmp_path}"})
    assert uri == f"file://{tmp_path}/runs/new/checkpoint_0002"


def test_nothing_to_serve_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="set RAYBURST_MODEL"):
        locate(None, {})
    with pytest.raises(CheckpointError, match=r"no complete checkpoint: train one with"):
        locate(None, {"RAYBURST_STORE": str(tmp_path)})
