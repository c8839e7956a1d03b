"""Runs whose group restarts, and runs on Ray's public API alone: growth, losses, hangs.

.venv/bin/python -m pytest tests/integration/train/test_other_tiers.py -m soak

Notices, power cuts, all nodes at once and mistakes in these tiers are with those in place
(test_in_place_run.py, test_in_place.py), interrupted restarts in test_restarts.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from training_cluster import Job, Nodes, Run
from training_ranks import weights_of

from .conftest import EPOCHS

pytestmark = [pytest.mark.timeout(600), pytest.mark.soak]
JOB = str(Path(__file__).resolve().parents[2] / "in_place_job.py")


@pytest.fixture(scope="module")
def nodes(s3_server: Any) -> Iterator[Nodes]:
    """Of a cluster with a dashboard: Ray frees what a dead controller held by what that says."""
    made = Nodes(s3_server.env, dashboard=True)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(params=["restart", "public"])
def tier(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Trained:
    """A job in one of the tiers, and what it has written."""

    def __init__(self, start: Callable[..., Job], folder: Path, tier: str, **more: Any) -> None:
        config = {"storage": str(folder), "epochs": EPOCHS, "least": 1, "most": 2, **more}
        self.folder = folder
        self.job = start(JOB, json.dumps({**config, "checkpoint_every_s": 0.5, "recovery": tier}))
        self.run = Run(f"{folder}/r", self.job)

    def saved(self) -> int:
        return int(self.run.wait("committed")[-1]["step"])

    def has_happened(self, what: str) -> bool:
        return (self.folder / f"fault-{what}").exists()

    def end(self) -> set[str]:
        """Hashes of the weights in the end."""
        (self.folder / "hurry").touch()
        assert self.job.wait() == 0, self.job.output
        return weights_of(self.run.records("end"))


def test_a_node_that_joins_is_trained_on_and_no_saved_step_is_done_again(
    nodes: Nodes, start: Callable[..., Job], tmp_path: Path, expected: set[str], tier: str
) -> None:
    nodes.ensure(1)
    cheap = {"start_patience_s": 0, "restart_s": 0}
    job = Trained(start, tmp_path, tier, growth=cheap)
    job.run.wait_step(3)
    saved = job.saved()
    nodes.add()
    grown = job.run.wait("start", world=2, at_least=2)
    assert all(r["step"] >= saved > 0 for r in grown)
    if tier == "restart":
        left = job.run.records("leave", world=1)[-1]
        assert {r["step"] for r in grown} == {left["step"]}, "it saved before it left"
    assert job.end() == expected


def test_too_few_workers_go_on_from_the_store_when_there_is_capacity_again(
    nodes: Nodes, start: Callable[..., Job], tmp_path: Path, expected: set[str], tier: str
) -> None:
    nodes.ensure(2)
    job = Trained(start, tmp_path, tier, least=2)
    begun = job.run.wait("start", world=2, at_least=2)
    saved = job.saved()
    nodes.kill(begun[0]["node"])
    nodes.ensure(2)
    again = job.run.wait("start", world=2, at_least=4)[2:]
    assert all(r["step"] >= saved > 0 for r in again)
    assert not job.run.records("start", world=1)
    assert job.end() == expected


def test_the_controller_dies_and_the_run_goes_on_from_what_was_saved(
    nodes: Nodes, start: Callable[..., Job], tmp_path: Path, expected: set[str], tier: str
) -> None:
    nodes.ensure(2)
    faults = [{"rank": 0, "step": 20, "what": "controller"}]
    job = Trained(start, tmp_path, tier, faults=faults)
    again = job.run.wait("start", world=2, at_least=4)[2:]
    assert job.has_happened("controller")
    assert {r["step"] for r in again} <= set(range(1, 20)), "from a checkpoint, not the beginning"
    assert job.end() == expected


def test_a_process_that_hangs_costs_what_a_collective_may_take(
    nodes: Nodes, start: Callable[..., Job], tmp_path: Path, expected: set[str], tier: str
) -> None:
    nodes.ensure(2)
    faults = [{"rank": 1, "step": 20, "what": "hang"}]
    job = Trained(start, tmp_path, tier, faults=faults, collective_timeout_s=10)
    again = job.run.wait("start", at_least=3)[2:]
    assert job.has_happened("hang")
    assert all(0 < r["step"] < 20 for r in again)
    assert job.end() == expected


def test_a_rank_that_ray_ends_for_its_memory_is_a_loss_and_no_mistake(
    nodes: Nodes,
    start: Callable[..., Job],
    tmp_path: Path,
    expected: set[str],
    tier: str,
    small_node: Callable[[], str],
) -> None:
    nodes.ensure(1)
    faults = [{"node": small_node(), "step": 20, "what": "memory"}]
    job = Trained(start, tmp_path, tier, faults=faults)
    again = job.run.wait("start", at_least=3)[2:]
    assert job.has_happened("memory")
    assert all(0 < r["step"] < 20 for r in again)
    assert job.end() == expected
