"""Groups that are rebuilt in place, on a real Ray cluster whose nodes drain and die.

.venv/bin/python -m pytest tests/integration/train/test_in_place.py
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from elastic_job import expected
from support import wait_for
from training_cluster import Job, Nodes

pytestmark = [pytest.mark.timeout(900), pytest.mark.soak]
JOB = str(Path(__file__).resolve().parents[2] / "elastic_job.py")


class Watched:
    """A job of `elastic_job.py`, and what its workers have written."""

    def __init__(self, folder: Path, start: Callable[..., Job], **config: Any) -> None:
        self.file = folder / "log.jsonl"
        self.steps = config["steps"]
        config |= {"log": str(self.file), "storage": str(folder), "run": "r"}
        self.job = start(JOB, json.dumps(config))

    def records(self, kind: str, **fields: Any) -> list[dict[str, Any]]:
        lines = self.file.read_text().splitlines(keepends=True) if self.file.exists() else []
        whole = [json.loads(line) for line in lines if line.endswith("\n")]
        return [
            record
            for record in whole
            if record["kind"] == kind and all(record.get(k) == v for k, v in fields.items())
        ]

    def wait(self, kind: str, *, at_least: int = 1, **fields: Any) -> list[dict[str, Any]]:
        def probe() -> list[dict[str, Any]] | None:
            found = self.records(kind, **fields)
            if len(found) >= at_least:
                return found
            assert self.job.process.poll() is None, f"the job ended early:\n{self.job.output}"
            return None

        return wait_for(probe, what=f"{at_least} {kind} {fields}", timeout_s=300)

    def node(self, rank: int, world: int) -> str:
        return str(self.records("step", rank=rank, world=world)[-1]["node"])

    def check_end(self) -> None:
        """It ended well, every worker has the weights of as many steps without interruption."""
        assert self.job.wait() == 0, self.job.output
        ends = self.records("end")
        assert {end["step"] for end in ends} == {self.steps}
        for end in ends:
            assert end["total"] == pytest.approx(expected(self.steps), rel=1e-5)

    def check_no_step_was_repeated(self) -> None:
        """No process took a step twice, and no later group one that an earlier had finished."""
        finished: dict[int, float] = {}
        for record in self.records("step"):
            finished[record["step"]] = max(finished.get(record["step"], 0.0), record["t"])
        for start in self.records("start"):
            before = [step for step, t in finished.items() if t < start["t"]]
            assert start["step"] >= max(before, default=0), start
        taken = [(record["pid"], record["step"]) for record in self.records("step")]
        assert len(taken) == len(set(taken))


def test_a_group_outlives_growth_a_notice_and_a_power_cut_without_a_restart(
    nodes: Nodes, start: Callable[..., Job], tmp_path: Path
) -> None:
    nodes.ensure(2)
    job = Watched(tmp_path, start, steps=240, least=1, most=3, patience_s=0)
    job.wait("step", rank=0, world=2, at_least=3)

    nodes.add()
    job.wait("step", rank=2, world=3, at_least=3)

    victim = job.node(rank=1, world=3)
    deadline_s = nodes.drain(victim, notice_s=9)
    left = job.wait("left")[0]
    assert left["node"] == victim
    assert left["t"] < deadline_s
    job.wait("step", rank=0, world=2, at_least=10)
    nodes.kill(victim)

    victim = job.node(rank=0, world=2)
    nodes.kill(victim)
    job.wait("step", rank=0, world=1, at_least=3)

    job.check_end()
    job.check_no_step_was_repeated()
    assert len(job.records("start")) == 2, "the first two workers, and nobody ever again"


def test_too_few_workers_save_and_go_on_when_there_is_capacity_again(
    nodes: Nodes, start: Callable[..., Job], tmp_path: Path
) -> None:
    nodes.ensure(2)
    job = Watched(tmp_path, start, steps=60, least=2, most=2)
    job.wait("step", rank=1, at_least=5)
    nodes.kill(job.node(rank=1, world=2))
    saved = job.wait("saved", world=1)[0]
    nodes.add()
    job.check_end()
    job.check_no_step_was_repeated()
    assert [record["step"] for record in job.records("start")][2:] == [saved["step"]] * 2


def test_the_rendezvous_dies_and_then_a_worker_and_another_while_the_group_is_rebuilt(
    nodes: Nodes, start: Callable[..., Job], tmp_path: Path
) -> None:
    nodes.ensure(3)
    faults = [
        {"rank": 1, "count": 10, "what": "rendezvous"},
        {"rank": 0, "count": 20, "what": "exit"},
        {"rank": 1, "at": "sync", "count": 2, "what": "exit"},
    ]
    job = Watched(tmp_path, start, steps=50, least=1, most=3, faults=faults)
    job.check_end()
    job.check_no_step_was_repeated()
    fired = [record["what"] for record in job.records("fault")]
    assert fired == ["rendezvous", "exit", "exit"]
    assert len(job.records("start")) == 3, "nobody had to restore"


@pytest.mark.parametrize("recovery", ["restart", "public"])
def test_the_other_tiers_save_and_restart(
    nodes: Nodes, start: Callable[..., Job], tmp_path: Path, recovery: str
) -> None:
    nodes.ensure(2)
    job = Watched(tmp_path, start, steps=60, least=1, most=2, recovery=recovery, pause_s=0.3)
    job.wait("step", rank=1, at_least=5)
    nodes.drain(job.node(rank=1, world=2), notice_s=15)
    again = job.wait("start", world=1)[0]
    saved = job.records("saved", world=2)
    assert again["step"] == saved[-1]["step"]
    job.check_end()
    job.check_no_step_was_repeated()


def test_a_node_that_dies_while_the_group_restarts_costs_no_step(
    nodes: Nodes, start: Callable[..., Job], tmp_path: Path
) -> None:
    nodes.ensure(3)
    job = Watched(tmp_path, start, steps=60, least=1, most=3, recovery="restart", pause_s=0.3)
    job.wait("step", rank=2, world=3, at_least=5)
    next_to_go = job.node(rank=1, world=3)
    nodes.drain(job.node(rank=2, world=3), notice_s=12)
    saved = job.wait("saved", world=3, at_least=3)[-1]
    nodes.kill(next_to_go)
    assert not job.records("start", world=2), "the group is on its way"
    again = job.wait("start", world=1)[0]
    assert again["step"] == saved["step"]
    job.check_end()
    job.check_no_step_was_repeated()


def test_the_controller_dies_and_the_run_goes_on_from_what_was_saved(
    nodes: Nodes, start: Callable[..., Job], tmp_path: Path
) -> None:
    nodes.ensure(2)
    faults = [{"rank": 0, "count": 10, "what": "controller"}]
    job = Watched(tmp_path, start, steps=30, least=1, most=2, faults=faults)
    job.check_end()
    assert [record["what"] for record in job.records("fault")] == ["controller"]
    assert len(job.records("start")) == 4
