"""One small Ray cluster for the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from training_cluster import Job, Nodes
from training_ranks import Case, Phase, play, weights_of

EPOCHS = 60
"""Of a run that is interrupted: more than it does before the last interruption."""


@pytest.fixture(scope="session")
def nodes(s3_server: Any) -> Iterator[Nodes]:
    """A test takes what `ensure` gives it, whatever the one before has left."""
    made = Nodes(s3_server.env)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="session")
def expected(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The weights of one process without interruption, over `EPOCHS`."""
    return weights_of(play(Case(epochs=EPOCHS), [Phase(1)], tmp_path_factory.mktemp("alone")))


@pytest.fixture
def small_node(nodes: Nodes) -> Callable[[], str]:
    """Adds a node on which Ray ends processes that take 4 GB more than now; a run takes 2."""

    def add() -> str:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        total, free = (int(lines[k].split()[0]) * 1024 for k in ("MemTotal", "MemAvailable"))
        return nodes.add(memory_share=(total - free + 4e9) / total)  # of the whole machine

    return add


@pytest.fixture
def s3(s3_server: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The S3 server, open to this process too."""
    for name, value in s3_server.env.items():
        monkeypatch.setenv(name, value)
    return s3_server


@pytest.fixture
def start(nodes: Nodes, tmp_path: Path) -> Iterator[Callable[..., Job]]:
    """Starts drivers that end with the test."""
    jobs: list[Job] = []

    def go(*command: str, cwd: Path | None = None, **env: str) -> Job:
        jobs.append(Job(list(command), nodes, tmp_path / f"out-{len(jobs)}", env, cwd))
        return jobs[-1]

    try:
        yield go
    finally:
        for job in jobs:
            job.kill()
