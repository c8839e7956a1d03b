"""README and docs run as they stand; what does not, and why, is in `tests/docs_blocks.py`.

Each page's commands and Python blocks run in their order, in a copy of the folders that they name.
Long jobs are shortened, and names of places that readers have are those of a fleet here.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from docs_blocks import FLEET_PAGES, Block, commands, not_run, pages_to_run
from typer.testing import CliRunner

from rayburst.checkpoint.store import ObjectStore
from rayburst.cli import app
from rayburst.dev.embedded import down, up
from rayburst.job import Job
from rayburst.sdk import connect
from rayburst.serve.keys import KeyStore

REPO = Path(__file__).resolve().parents[3]
STEPS = 6
BUCKET = "object_store: {uri: s3://my-bucket/my-fleet}"
HISTORY = """{"SpotPriceHistory": [
 {"AvailabilityZone": "us-east-1f", "InstanceType": "p3.2xlarge", "SpotPrice": "0.918",
  "ProductDescription": "Linux/UNIX", "Timestamp": "2021-04-01T00:00:00+00:00"},
 {"AvailabilityZone": "us-east-1f", "InstanceType": "p3.2xlarge", "SpotPrice": "0.924",
  "ProductDescription": "Linux/UNIX", "Timestamp": "2021-05-01T18:00:00+00:00"}]}"""
MONTH = "name,at_h,work_h,nodes,within_h\nnightly,0,4,1,12\nretrain,30,20,2,48\n"
pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders that the pages name, and the files that their readers bring."""
    root = tmp_path_factory.mktemp("clone")
    for name in ("jobs", "serve_apps", "cluster_configs"):
        shutil.copytree(REPO / name, root / name)
    (root / "history.json").write_text(HISTORY)
    (root / "month.csv").write_text(MONTH)
    local = (root / "cluster_configs/local.yaml").read_text()
    (root / "fleet.yaml").write_text(re.sub(r"(?m)^object_store: .*$", BUCKET, local))
    return root


@pytest.fixture(scope="module")
def place(clone: Path) -> Iterator[dict[str, str]]:
    """A fleet named as in the examples; what its users' shells have in their environment."""
    fleet = up(clone / "cluster_configs/local.yaml", root=clone, name="lab")
    try:
        yield shell_of(clone)
    finally:
        for job in connect("lab", root=clone).jobs():
            job.stop()
        assert down(fleet).clean


def shell_of(clone: Path) -> dict[str, str]:
    """What `eval "$(rayburst env)"` puts into the reader's shell."""
    command = [sys.executable, "-m", "rayburst", "env", "lab"]
    done = subprocess.run(command, cwd=clone, capture_output=True, text=True, check=True)
    return dict(
        word.split("=", 1)
        for word in shlex.split(done.stdout, comments=True)
        if word != "export" and "=" in word
    )


class Reader:
    """Who types a page's blocks, one after the other."""

    def __init__(self, page: str, folder: Path, env: dict[str, str]) -> None:
        self.ran = 0
        self._page = page
        self._folder = folder
        self._env = env
        self._names: dict[str, Any] = {}

    def read(self, block: Block) -> None:
        if block.language == "python":
            if not not_run(self._page, block.text):
                text = self._here(block.text)
                text = text.replace("jobs/train_lm.py", f"jobs/train_lm.py --steps {STEPS}")
                exec(compile(text, str(block), "exec"), self._names)
                self.ran += 1
            return
        for words in commands(block):
            if not not_run(self._page, shlex.join(words)):
                here = [self._here(word) for word in words]
                if "jobs/train_lm.py" in words:
                    here += ["--steps", str(STEPS)]
                self._type(block, here)
                self.ran += 1

    def _here(self, text: str) -> str:
        """The same with places that are here, and jobs that end soon."""
        text = text.replace("/work/ml", str(self._folder))
        text = text.replace("old/ticks.jsonl", ".rayburst/lab/logs/ticks.jsonl")
        text = text.replace("http://head:8265", self._env.get("RAY_API_SERVER_ADDRESS", ""))
        text = text.replace('token="..."', "token=None").replace(
            " --storage s3://my-bucket/runs", ""
        )
        text = text.replace("s3://bucket/", f"{self._folder}/bucket/")
        return text.replace('    pip=["tqdm"],  # installed on the nodes\n', "")

    def _type(self, block: Block, words: list[str]) -> None:
        words, file = _redirected(words)
        if words[0] == "ray":
            told = _spawn(block, words)
        else:
            assert words[0] == "rayburst", f"{block}: who runs {shlex.join(words)}?"
            if words[1] == "submit":
                words.insert(2, "--no-wait")
            if "--store" in words:
                words[words.index("--store") + 1] = str(self._folder / "bucket")
            if words[1] == "keys":
                words = [self._key() if word == "3f2c91ab77e0" else word for word in words]
            done = CliRunner().invoke(app, words[1:])
            assert done.exit_code == 0, (str(block), words, done.output, done.exception)
            told = done.stdout
        if file:
            (self._folder / file).write_text(told)

    def _key(self) -> str:
        """The key that the page's `create` made."""
        keys = ObjectStore.open(f"{self._folder}/bucket/serve/keys")
        return min(KeyStore(keys).all(), key=lambda key: key.created_s).id


def _spawn(block: Block, words: list[str]) -> str:
    done = subprocess.run(words, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, (str(block), words, done.stdout, done.stderr)
    return done.stdout


def _redirected(words: list[str]) -> tuple[list[str], str]:
    if ">" not in words:
        return words, ""
    at = words.index(">")
    return words[:at], words[at + 1]


@pytest.fixture
def typed(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(clone)
    monkeypatch.syspath_prepend(str(clone))
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)


@pytest.mark.parametrize("page", [p for p in pages_to_run() if p not in FLEET_PAGES])
def test_a_page_that_needs_no_fleet_runs(page: str, clone: Path, typed: None) -> None:
    reader = Reader(page, clone, {})
    for block in pages_to_run()[page]:
        reader.read(block)
    left_out = page in ("search.md", "training.md", "tuning.md")
    assert (reader.ran == 0) == left_out


# README first: it trains the run that the others ask about
@pytest.mark.soak
@pytest.mark.parametrize("page", FLEET_PAGES)
def test_a_page_runs_against_a_fleet(
    page: str, clone: Path, place: dict[str, str], typed: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    reader = Reader(page, clone, place)
    for block in pages_to_run()[page]:
        reader.read(block)
    assert reader.ran > 5 or page == "operations.md"
    platform = connect("lab", root=clone)
    assert "first" in platform.store().folders("runs")
    _stop(platform.jobs())


def _stop(jobs: list[Job]) -> None:
    """What a page started and did not wait for makes room for the next page."""
    for job in jobs:
        if job.status in ("PENDING", "RUNNING"):
            job.stop()
