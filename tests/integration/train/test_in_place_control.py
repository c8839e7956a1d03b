"""Runs in place that lose what holds them together: controller, driver, rendezvous, grant.

.venv/bin/python -m pytest tests/integration/train/test_in_place_control.py
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import wait_for
from training_cluster import Job, Nodes, Run
from training_ranks import Case, Phase, play, weights_of

from rayburst.train.grants import PLANNER_KEY, Ask, Grant, ask_key, grant_key

from .conftest import EPOCHS

pytestmark = pytest.mark.timeout(600)
JOB = str(Path(__file__).resolve().parents[2] / "in_place_job.py")

# Takes a whole node: it ends once nobody holds anything of it.
TAKES = """
import sys, ray
ray.init(logging_level="ERROR")

@ray.remote(num_cpus=1, label_selector={"rayburst.io/host": sys.argv[1]})
def here():
    return True

assert ray.get(here.remote(), timeout=60)
"""


def job_config(folder: Path, **more: Any) -> str:
    return json.dumps({"storage": str(folder), "epochs": EPOCHS, "least": 1, "most": 2, **more})


def test_the_controller_dies_and_then_the_driver_and_the_run_goes_on_from_what_was_saved(
    nodes: Nodes, start: Callable[..., Job], tmp_path: Path, expected: set[str]
) -> None:
    nodes.ensure(2)
    faults = [{"rank": 0, "step": 20, "what": "controller"}]
    config = job_config(tmp_path, checkpoint_every_s=0.5, faults=faults)
    job = start(JOB, config)
    run = Run(f"{tmp_path}/r", job)
    again = run.wait("start", at_least=4)[2:]
    assert (tmp_path / "fault-controller").exists()
    assert {r["world"] for r in again} == {2}
    assert {r["step"] for r in again} <= set(range(1, 20)), "from a checkpoint, not the beginning"

    saved = run.wait("committed", at_least=len(run.records("committed")) + 2)[-1]["step"]
    job.kill()
    second = start(JOB, config)
    run = Run(f"{tmp_path}/r", second)
    resumed = run.wait("start", at_least=6)[4:]
    assert {r["world"] for r in resumed} == {2}, "what the lost driver had reserved is free"
    assert all(r["step"] >= saved for r in resumed)
    (tmp_path / "hurry").touch()
    assert second.wait() == 0, second.output
    assert weights_of(run.records("end")) == expected


@pytest.fixture
def grant(nodes: Nodes) -> Iterator[Callable[..., None]]:
    """What a planner tells the job "granted"."""

    def tell(*hosts: str) -> None:
        nodes.publish(PLANNER_KEY, json.dumps(hosts).encode())
        nodes.publish(grant_key("granted"), Grant(hosts=hosts).to_json())

    yield tell
    tell()


def test_a_grant_shrinks_moves_ends_and_comes_again(
    nodes: Nodes,
    start: Callable[..., Job],
    grant: Callable[..., None],
    tmp_path: Path,
    expected: set[str],
) -> None:
    nodes.ensure(3)
    a, b, c = nodes.hosts()

    def is_free(host: str) -> bool:
        """Whether a task gets the whole of it."""
        task = start("-c", TAKES, host)
        return task.wait() == 0

    grant(a, b)
    submitted = json.dumps({"metadata": {"job_submission_id": "granted"}})
    job = start(JOB, job_config(tmp_path), RAY_JOB_CONFIG_JSON_ENV_VAR=submitted)
    run = Run(f"{tmp_path}/r", job)
    assert {r["host"] for r in run.wait("start", world=2, at_least=2)} == {a, b}
    run.wait_step(3)

    grant(a)
    departed = run.wait("depart")[0]
    assert (departed["host"], departed["reason"]) == (b, f"{b} is to be taken away")
    assert is_free(b), "the group has let go of its place there"

    def told() -> Ask | None:
        """What the job tells its planner; a guess where the new rank 0 has not seen the stop."""
        ask = Ask.from_json(nodes.published(ask_key("granted")) or b"")
        return None if ask.stop_s is None or ask.changeover_s is None else ask

    ask = wait_for(told, what="what a change takes, in the job's ask", timeout_s=60)
    assert ask.stop_s < ask.changeover_s, "a change in place is not priced as a restart"

    grant(a, c)
    joined = run.wait("start", world=2, at_least=3)[-1]
    assert joined["host"] == c
    assert run.wait("change", rank=0, world=2)[-1]["host"] == a

    grant()
    left = run.wait("leave", at_least=2)
    assert is_free(a), "a job that waits holds nothing"
    grant(b)
    back = run.wait("start", at_least=4)[-1]
    assert (back["host"], back["world"]) == (b, 1)
    assert {back["step"]} == {r["step"] for r in left}, "it had saved before it left"
    (tmp_path / "hurry").touch()
    assert job.wait() == 0, job.output
    assert weights_of(run.records("end")) == expected


@pytest.mark.soak
def test_a_rendezvous_that_is_gone_for_good_makes_the_group_save_and_restart(
    nodes: Nodes, start: Callable[..., Job], tmp_path: Path, expected: set[str]
) -> None:
    nodes.ensure(2)
    faults = [{"rank": 1, "step": 10, "what": "rendezvous"}]
    job = start(JOB, job_config(tmp_path, faults=faults))
    run = Run(f"{tmp_path}/r", job)
    again = run.wait("start", at_least=4)[2:]
    assert (tmp_path / "fault-rendezvous").exists()
    left = run.records("leave")
    assert {r["reason"] for r in left} == {"the rendezvous is gone"}
    assert {r["step"] for r in again} == {r["step"] for r in left}, "no step is done again"

    # the new group is one that is rebuilt in place
    nodes.kill(again[0]["node"])
    run.wait("change", rank=0, world=1)
    (tmp_path / "hurry").touch()
    assert job.wait() == 0, job.output
    assert weights_of(run.records("end")) == expected


@pytest.mark.soak
def test_a_loop_with_collectives_of_its_own_restarts_when_a_peer_is_lost_in_one(
    nodes: Nodes, start: Callable[..., Job], tmp_path: Path, expected: set[str]
) -> None:
    nodes.ensure(2)
    job = start(JOB, job_config(tmp_path, asks=True, checkpoint_every_s=0.5))
    run = Run(f"{tmp_path}/r", job)
    run.wait("committed", at_least=2)
    nodes.kill(run.records("start", rank=1)[0]["node"])
    again = run.wait("start", world=1)[0]
    assert again["step"] > 0
    (tmp_path / "hurry").touch()
    assert job.wait() == 0, job.output
    assert weights_of(run.records("end")) == expected


@pytest.mark.soak
def test_too_few_workers_go_on_when_there_is_capacity_again(
    nodes: Nodes, start: Callable[..., Job], tmp_path: Path, expected: set[str]
) -> None:
    nodes.ensure(2)
    job = start(JOB, job_config(tmp_path, least=2))
    run = Run(f"{tmp_path}/r", job)
    run.wait("start", world=2, at_least=2)
    run.wait_step(5)
    nodes.kill(run.records("start", rank=0)[0]["node"])
    left = run.wait("leave", world=1)[0]
    nodes.ensure(2)
    again = run.wait("start", world=2, at_least=4)[2:]
    assert {r["step"] for r in again} == {left["step"]}, "no step is done again"
    (tmp_path / "hurry").touch()
    assert job.wait() == 0, job.output
    assert weights_of(run.records("end")) == expected


@pytest.mark.soak
@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_a_loss_that_is_no_number_stops_the_run_or_is_left_out(
    nodes: Nodes, start: Callable[..., Job], tmp_path: Path, policy: str
) -> None:
    nodes.ensure(2)
    (tmp_path / "hurry").touch()
    job = start(JOB, job_config(tmp_path, poison=20, on_nonfinite=policy, epochs=4))
    code = job.wait()
    run = Run(f"{tmp_path}/r", job)
    assert len(run.records("start")) == 2, "two workers, one attempt"
    if policy == "skip":
        assert code == 0, job.output
        case = Case(options={**Case().options, "on_nonfinite": "skip"}, poison=20)
        alone = play(case, [Phase(1)], tmp_path / "alone")
        assert weights_of(run.records("end")) == weights_of(alone)
        left_out = {r["step"] for r in run.records("nonfinite")}
        assert left_out == {r["step"] for r in alone if r["kind"] == "nonfinite"}
        assert len(left_out) == 4
    else:
        assert code == 1
        (step,) = {r["step"] for r in run.records("nonfinite")}
        assert f"NonFiniteError: step {step} (samples " in job.output
        assert not run.records("step", step=step)


@pytest.mark.soak
def test_a_rank_that_ray_ends_for_its_memory_is_replaced(
    nodes: Nodes,
    start: Callable[..., Job],
    tmp_path: Path,
    expected: set[str],
    small_node: Callable[[], str],
) -> None:
    nodes.ensure(1)
    small = small_node()
    faults = [{"node": small, "step": 5, "what": "memory"}]
    job = start(JOB, job_config(tmp_path, faults=faults))
    run = Run(f"{tmp_path}/r", job)
    shrunk = run.wait("change", rank=0, world=1)[0]
    assert (tmp_path / "fault-memory").exists()
    assert "was lost" in shrunk["reason"]
    run.wait("change", rank=0, world=2)
    (tmp_path / "hurry").touch()
    assert job.wait() == 0, job.output
    assert weights_of(run.records("end")) == expected
