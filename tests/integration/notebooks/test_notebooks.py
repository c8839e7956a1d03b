"""The notebooks run from the first to the last against one fleet, and leave what they promise."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from rayburst.dev.embedded import down
from rayburst.errors import FleetNotFoundError
from rayburst.sdk import connect, find_fleet

REPO = Path(__file__).resolve().parents[3]
NOTEBOOKS = sorted((REPO / "notebooks").glob("*.ipynb"))
pytestmark = pytest.mark.timeout(420)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folders that the notebooks need, so that their fleet is not the reader's own."""
    root = tmp_path_factory.mktemp("clone")
    for name in ("jobs", "serve_apps", "cluster_configs", "notebooks"):
        shutil.copytree(REPO / name, root / name)
    yield root
    try:
        fleet = find_fleet(root=root)
    except FleetNotFoundError:
        return
    assert down(fleet).clean


def outputs(notebook: nbformat.NotebookNode) -> str:
    """All that the cells printed and showed, as text."""
    found = []
    for cell in notebook.cells:
        for out in cell.get("outputs", ()):
            data = out.get("data", {})
            found += [out.get("text", ""), data.get("text/plain", ""), data.get("text/html", "")]
    return "\n".join(found)


def test_they_are_kept_without_outputs() -> None:
    assert len(NOTEBOOKS) == 4
    for file in NOTEBOOKS:
        for cell in nbformat.read(file, as_version=4).cells:
            assert not cell.get("outputs"), f"{file.name}: clear the outputs before a commit"


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_runs_and_shows_what_it_is_about(
    clone: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    notebook = nbformat.read(file, as_version=4)
    place = {"metadata": {"path": str(clone / "notebooks")}}
    NotebookClient(notebook, timeout=300, resources=place).execute()
    shown = outputs(notebook)
    match file.stem.partition("-")[0]:
        case "1":
            store = connect(root=clone).store()
            assert "first" in store.folders("runs")
            assert "all on-demand" in shown, "the bill beside its alternative"
            assert re.search(r"^\W*60\b", shown, re.MULTILINE), "the last step's checkpoint"
        case "2":
            platform = connect(root=clone)
            notices = [e for e in platform.events() if e.kind == "notice"]
            # the one that it gives, and those to hosts that came after and were not needed any more
            assert {e.market for e in notices} == {"spot"}
            steps = [r for r in platform.run("classes").log() if r["kind"] == "step"]
            assert max(r["step"] for r in steps) == -(-8 * 16_384 // 384)
            assert any(r["t"] > notices[0].t for r in steps), "it went on after the notice"
            assert (clone / "classes.html").stat().st_size > 10_000
        case "3":
            frame = shown[shown.index("p50_ms") :].splitlines()
            sizes = [line.split() for line in frame if re.match(r"(1|8|32)\s", line)]
            assert [row[0] for row in sizes] == ["1", "8", "32"]
            assert [row[-1] for row in sizes] == ["0", "0", "0"], "no errors"
            older, newer, again = re.findall(r"^(gpt@\d+) answers", shown, re.MULTILINE)
            assert older == again != newer, "the version before answers again"
            moves = connect(root=clone).models.history("gpt")[-2:]
            assert [move.kind for move in moves] == ["promote", "rollback"]
        case _:
            assert {"job", "useful", "on-demand"} <= set(re.findall(r"[\w-]+", shown))
            with pytest.raises(FleetNotFoundError):
                find_fleet(root=clone)
