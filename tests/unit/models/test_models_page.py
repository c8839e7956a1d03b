"""docs/models.md runs as it stands, from top to bottom; what needs Ray is left out."""

from __future__ import annotations

import re
import shlex
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from published_models import save_run, some_text
from typer.testing import CliRunner

from rayburst.models import ModelRegistry, measure, publish
from rayburst.models.models_cli import app

pytest.importorskip("torchao", reason="the extra `int8`; `dev` has it")
PAGE = Path(__file__).parents[3] / "docs" / "models.md"


def test_the_page_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = partial(measure.measure, batches=(1,), rounds=1)
    monkeypatch.setattr(publish, "measure", quick)  # the page is about what, not how fast
    save_run(str(tmp_path), "first", step=300, text=some_text(tmp_path))
    save_run(str(tmp_path), "first", step=400)
    lines, space = 0, dict[str, Any]()
    for language, block in re.findall(r"```(\w+)\n(.*?)```", PAGE.read_text(), re.DOTALL):
        text = block.replace("s3://fleet", str(tmp_path))
        if language == "python" and "import rayburst as rb" not in text:
            exec(text, space)
        for line in text.splitlines() if language == "bash" else ():
            words = shlex.split(line, comments=True)
            if words[:2] == ["rayburst", "models"]:
                lines += 1
                done = CliRunner().invoke(app, words[2:], catch_exceptions=False)
                assert done.exit_code == 0, (line, done.output)
    assert lines == 13
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith(f"gpt@1 {tmp_path}/runs/first@300 ")
    assert told[2] == "[1, 2, 1]"
    models = ModelRegistry.open(str(tmp_path))
    assert models.numbers("gpt") == [1, 2, 3] and models.aliases("gpt") == {"production": 1}
    assert space["choice"].variant in {v.name for v in models.get("gpt@3").variants}
    assert told[4].startswith("['fp32'")
