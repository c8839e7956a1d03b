"""docs/checkpoints.md runs as it stands, from top to bottom; what needs Ray is left out."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import rayburst.checkpoint as checkpoint
from rayburst.checkpoint.cli import app

PAGE = Path(__file__).parents[3] / "docs" / "checkpoints.md"


def test_the_page_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    alone = [b for b in blocks if "ray_train" not in b and "peers" not in b]
    assert len(alone) == 4
    space: dict[str, Any] = {}
    for block in alone:
        exec(block.replace("s3://models/runs/", f"{tmp_path}/"), space)
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "100 {'offset': 6400} {'loss': 0.5} 3"
    assert told[-1] == "200 None"
    kept = [listed.step for listed in checkpoint.list(f"{tmp_path}/a")]
    assert kept == [108, 109, 110, 200]
    checkpoint.close_all()
    monkeypatch.chdir(tmp_path)
    lines = re.findall(r"^rayburst checkpoints (.*)$", PAGE.read_text(), re.MULTILINE)
    assert len(lines) == 10
    for line in lines:
        words = shlex.split(line.replace("s3://models/runs/", f"{tmp_path}/"), comments=True)
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, (line, done.output, done.exception)
    assert checkpoint.latest(f"{tmp_path}/b") == 0
