"""Runs that are interrupted while they restart, in each tier, on a real Ray cluster.

.venv/bin/python -m pytest tests/integration/train/test_restarts.py
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import wait_for
from training_cluster import Job, Nodes, Run
from training_ranks import weights_of

from .conftest import EPOCHS

pytestmark = [pytest.mark.timeout(600), pytest.mark.soak]
JOB = str(Path(__file__).resolve().parents[2] / "in_place_job.py")
AGAIN = {"in-place": ("rendezvous", 4), "restart": ("kill", 10), "public": ("kill", 10)}
"""What makes a group of this tier start again on the nodes that it has, and at which step."""


class Restarting:
    """A run of two workers whose second group comes up: its rank 1 waits for `go`."""

    def __init__(self, nodes: Nodes, start: Callable[..., Job], folder: Path, tier: str) -> None:
        nodes.ensure(2)
        fault, step = AGAIN[tier]
        config: dict[str, Any] = {
            "storage": str(folder),
            "epochs": EPOCHS,
            "least": 1,
            "most": 2,
            "recovery": tier,
            "checkpoint_every_s": 0.5,
            "faults": [{"rank": 1, "step": step, "what": fault}],
            "waits_after": fault,
        }
        self.folder = folder
        self.job = start(JOB, json.dumps(config))
        self.run = Run(f"{folder}/r", self.job)
        self.run.wait("committed", world=2)
        self.node = wait_for(self._coming_up, what="rank 1 of the second group", timeout_s=200)
        assert (folder / f"fault-{fault}").exists()
        assert not (folder / "go").exists()
        self.saved = self.run.records("committed")[-1]["step"]
        assert self.saved > 0
        self.alone = len(self.run.records("start", world=1))  # before the second worker came

    def _coming_up(self) -> str | None:
        waits = self.folder / "waits"
        assert self.job.process.poll() is None, self.job.output
        return waits.read_text() if waits.exists() else None

    def next_alone(self) -> dict[str, Any]:
        """Where the run starts with one worker after this."""
        return self.run.wait("start", world=1, at_least=self.alone + 1)[-1]

    def go(self) -> None:
        (self.folder / "go").touch()

    def end(self) -> set[str]:
        """Hashes of the weights in the end."""
        (self.folder / "hurry").touch()
        assert self.job.wait() == 0, self.job.output
        return weights_of(self.run.records("end"))


@pytest.mark.parametrize("tier", list(AGAIN))
def test_a_node_that_dies_while_workers_come_up_costs_no_step_that_was_saved(
    nodes: Nodes, start: Callable[..., Job], tmp_path: Path, expected: set[str], tier: str
) -> None:
    restarting = Restarting(nodes, start, tmp_path, tier)
    nodes.kill(restarting.node)
    alone = restarting.next_alone()
    assert alone["step"] >= restarting.saved
    assert alone["node"] != restarting.node
    assert restarting.end() == expected


@pytest.mark.parametrize("tier", list(AGAIN))
def test_a_node_that_gets_notice_while_workers_come_up_is_left_in_time(
    nodes: Nodes, start: Callable[..., Job], tmp_path: Path, expected: set[str], tier: str
) -> None:
    restarting = Restarting(nodes, start, tmp_path, tier)
    run = restarting.run
    # with Ray's public API alone notices are asked for every 20 steps
    deadline_s = nodes.drain(restarting.node, notice_s=40 if tier == "public" else 20)
    restarting.go()
    left = run.wait("depart" if tier == "in-place" else "leave", world=2)[-1]
    assert left["t"] < deadline_s
    nodes.kill(restarting.node)
    if tier != "in-place":
        alone = restarting.next_alone()
        assert alone["step"] == left["step"], "no step is done again"
    assert restarting.end() == expected
