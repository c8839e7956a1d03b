"""The Python of docs/checkpoints.md runs as it stands; what needs a Ray cluster is left out."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import rayburst.checkpoint as checkpoint

PAGE = Path(__file__).parents[3] / "docs" / "checkpoints.md"


def test_the_page_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    alone = [b for b in blocks if "ray_train" not in b and "peers" not in b]
    assert len(alone) == 4
    space: dict[str, Any] = {}
    for block in alone:
        exec(block.replace("s3://models/runs/a", str(tmp_path)), space)
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "100 {'offset': 6400} {'loss': 0.5} 3"
    assert told[-1] == "200 None"
    kept = [listed.step for listed in checkpoint.list(str(tmp_path))]
    assert kept == [108, 109, 110, 200]
    checkpoint.close_all()
