"""A run on a real Ray cluster is rebuilt in place when nodes go and come.

.venv/bin/python -m pytest tests/integration/train/test_in_place_run.py
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from training_cluster import Job, Nodes, Run
from training_ranks import weights_of

from .conftest import EPOCHS

pytestmark = pytest.mark.timeout(600)
JOB = str(Path(__file__).resolve().parents[2] / "in_place_job.py")


def job_config(folder: Path, **more: Any) -> str:
    return json.dumps({"storage": str(folder), "epochs": EPOCHS, "least": 1, "most": 2, **more})


def test_rank_0_leaves_with_notice_a_node_joins_and_rank_0_loses_power(
    nodes: Nodes, start: Callable[..., Job], tmp_path: Path, expected: set[str]
) -> None:
    nodes.ensure(2)
    job = start(JOB, job_config(tmp_path))
    run = Run(f"{tmp_path}/r", job)
    victim = run.wait("start", rank=0, world=2)[0]["node"]
    run.wait_step(3)

    deadline_s = nodes.drain(victim, notice_s=9)
    departed = run.wait("depart")[0]
    assert departed["t"] < deadline_s
    run.wait("change", rank=0, world=1)
    nodes.kill(victim)

    nodes.add()
    joined = run.wait("change", world=2)[0]
    run.wait("start", world=2, generation=joined["generation"])

    nodes.kill(run.wait("change", rank=0, world=2)[-1]["node"])
    run.wait("change", rank=0, world=1, at_least=2)
    (tmp_path / "hurry").touch()

    assert job.wait() == 0, job.output
    assert weights_of(run.records("end")) == expected
    steps = [record["step"] for record in run.records("step")]
    assert all(b >= a - 1 for a, b in itertools.pairwise(steps)), "no finished step is done again"
    assert not run.records("leave"), "nobody restarted"


def test_workers_that_share_a_node_lose_it_after_one_of_them_ran_out_of_memory(
    nodes: Nodes, start: Callable[..., Job], tmp_path: Path, expected: set[str]
) -> None:
    """Two losses at once; and a killed process is replaced on the node that it ran on."""
    nodes.ensure(0)
    both = {nodes.add(cpus=2), nodes.add(cpus=2)}
    faults = [{"rank": 3, "step": 5, "what": "kill"}]
    job = start(JOB, job_config(tmp_path, most=4, faults=faults))
    run = Run(f"{tmp_path}/r", job)
    begun = run.wait("start", world=4, at_least=4)
    assert {r["node"] for r in begun} == both

    shrunk = run.wait("change", rank=0, world=3)[0]
    assert (tmp_path / "fault-kill").exists()
    assert "was lost" in shrunk["reason"]
    joined = run.wait("start", world=4, generation=shrunk["generation"] + 1)[0]
    assert joined["node"] == next(r["node"] for r in begun if r["rank"] == 3)

    nodes.kill(run.wait("change", rank=0, world=4)[0]["node"])
    run.wait("change", rank=1, world=2)
    (tmp_path / "hurry").touch()

    assert job.wait() == 0, job.output
    assert weights_of(run.records("end")) == expected
    assert not run.records("leave"), "nobody restarted"


@pytest.mark.parametrize(
    "recovery",
    ["in-place", *(pytest.param(t, marks=pytest.mark.soak) for t in ("restart", "public"))],
)
def test_a_mistake_on_one_rank_ends_the_job_at_once_with_its_traceback(
    nodes: Nodes, start: Callable[..., Job], tmp_path: Path, recovery: str
) -> None:
    nodes.ensure(2)
    faults = [{"rank": 1, "step": 5, "what": "raise"}]
    job = start(JOB, job_config(tmp_path, faults=faults, recovery=recovery))
    assert job.wait() == 1
    assert (tmp_path / "fault-raise").exists()
    assert 'raise KeyError("the user\'s own mistake")' in job.output
    assert "the user's own mistake" in job.output.split("FAILED ")[1].split(" END")[0]
    run = Run(f"{tmp_path}/r", job)
    assert len(run.records("start")) == 2, "two workers, one attempt"


@pytest.mark.soak
@pytest.mark.parametrize("recovery", ["in-place", "restart", "public"])
def test_all_nodes_at_once_go_on_from_the_store(
    nodes: Nodes, start: Callable[..., Job], tmp_path: Path, expected: set[str], recovery: str
) -> None:
    nodes.ensure(2)
    job = start(JOB, job_config(tmp_path, checkpoint_every_s=1, recovery=recovery))
    run = Run(f"{tmp_path}/r", job)
    run.wait("committed", at_least=3)
    nodes.ensure(0)
    saved = run.records("committed")[-1]["step"]
    nodes.ensure(2)
    assert run.wait("start", at_least=3)[2]["step"] >= saved > 0
    (tmp_path / "hurry").touch()
    assert job.wait() == 0, job.output
    assert weights_of(run.records("end")) == expected


@pytest.mark.soak
@pytest.mark.parametrize("recovery", ["restart", "public"])
def test_the_other_tiers_go_on_from_the_store_after_a_power_cut(
    nodes: Nodes, start: Callable[..., Job], tmp_path: Path, expected: set[str], recovery: str
) -> None:
    nodes.ensure(2)
    job = start(JOB, job_config(tmp_path, checkpoint_every_s=1, recovery=recovery))
    run = Run(f"{tmp_path}/r", job)
    saved = run.wait("committed", world=2, at_least=2)[-1]["step"]
    nodes.kill(run.wait("start", rank=1, world=2)[0]["node"])
    again = run.wait("start", world=1)[0]
    assert again["step"] >= saved > 0
    (tmp_path / "hurry").touch()
    assert job.wait() == 0, job.output
    assert weights_of(run.records("end")) == expected


@pytest.mark.soak
def test_a_rank_that_dies_before_a_report_frees_those_who_come_to_it_late(
    nodes: Nodes, start: Callable[..., Job], tmp_path: Path, expected: set[str]
) -> None:
    """Rank 0 measures for seconds, and reports to a group that has lost a member meanwhile."""
    nodes.ensure(2)
    faults = [
        {"rank": 1, "step": 8, "what": "kill", "at": "measure"},
        {"rank": 0, "step": 8, "what": "slow", "at": "measure"},
    ]
    job = start(JOB, job_config(tmp_path, checkpoint_every_s=0.5, faults=faults))
    run = Run(f"{tmp_path}/r", job)
    run.wait("change", rank=0, world=1)
    assert (tmp_path / "fault-kill").exists()
    assert (tmp_path / "fault-slow").exists()
    (tmp_path / "hurry").touch()
    assert job.wait() == 0, job.output
    assert weights_of(run.records("end")) == expected


@pytest.mark.soak
def test_a_process_that_hangs_is_ended_and_replaced(
    nodes: Nodes, start: Callable[..., Job], tmp_path: Path, expected: set[str]
) -> None:
    nodes.ensure(2)
    faults = [{"rank": 1, "step": 5, "what": "hang"}]
    job = start(JOB, job_config(tmp_path, in_place={"hung_after_s": 5}, faults=faults))
    run = Run(f"{tmp_path}/r", job)
    shrunk = run.wait("change", rank=0, world=1)[0]
    assert (tmp_path / "fault-hang").exists()
    assert "it hung for 5 s" in shrunk["reason"]
    run.wait("change", rank=0, world=2)
    (tmp_path / "hurry").touch()
    assert job.wait() == 0, job.output
    assert weights_of(run.records("end")) == expected


@pytest.mark.soak
def test_a_worker_whose_link_is_dead_holds_nobody(
    nodes: Nodes, start: Callable[..., Job], tmp_path: Path, expected: set[str]
) -> None:
    """Its process lives and no connection ends: it is silent, and so is its port."""
    nodes.ensure(2)
    faults = [{"rank": 1, "step": 5, "what": "unplug"}]
    job = start(JOB, job_config(tmp_path, faults=faults))
    run = Run(f"{tmp_path}/r", job)
    shrunk = run.wait("change", rank=0, world=1)[0]
    assert (tmp_path / "fault-unplug").exists()
    assert "its port does not answer" in shrunk["reason"]
    run.wait("change", rank=0, world=2)
    (tmp_path / "hurry").touch()
    assert job.wait() == 0, job.output
    assert weights_of(run.records("end")) == expected
