"""The reference page is what the docstrings say."""

from __future__ import annotations

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_page_is_made_from_the_docstrings_as_they_stand():
    spec = importlib.util.spec_from_file_location("reference", ROOT / "scripts/reference.py")
    assert spec is not None and spec.loader is not None
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    page = (ROOT / "docs/reference.md").read_text()
    assert page == reference.page(), "run: .venv/bin/python scripts/reference.py"
    for name in ("Platform.submit", "Platform.run", "Job.wait", "TrainingRun.report"):
        assert f"### `{name}`" in page
