"""SIGKILL at every step of the protocol, on a real process: nothing acknowledged is ever lost."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from rayburst.checkpoint.catalog import newest_step, read_manifest, steps
from rayburst.checkpoint.checkpointer import Checkpointer
from rayburst.checkpoint.gc import collect, plan_gc
from rayburst.checkpoint.protocol import GC_LOCK, GcStep, SaveStep
from rayburst.checkpoint.retention import Retention
from rayburst.checkpoint.store import ObjectStore
from rayburst.checkpoint.tree import flatten
from rayburst.checkpoint.verify import verify

HERE = Path(__file__).parent
VISIBLE = {SaveStep.COMMITTED, SaveStep.HINTED, SaveStep.RELEASED}


class Forker:
    """The warm parent that forks the processes to be killed."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "forker.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, case: str, **args: Any) -> tuple[int, list[Any]]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        import os

        env = {k: v for k, v in os.environ.items() if k.startswith("AWS_")}
        self.process.stdin.write(json.dumps({"case": case, "args": args, "env": env}) + "\n")
        self.process.stdin.flush()
        reply = json.loads(self.process.stdout.readline())
        return reply["status"], reply["said"]


@pytest.fixture(scope="module")
def fork() -> Iterator[Forker]:
    forker = Forker()
    yield forker
    assert forker.process.stdin is not None
    forker.process.stdin.close()
    assert forker.process.stdout is not None
    forker.process.stdout.close()
    forker.process.wait(timeout=20)


def state_at(step: int) -> dict[str, Any]:
    space: dict[str, Any] = {"__name__": "forker"}
    exec(compile((HERE / "forker.py").read_text(), "forker.py", "exec"), space)
    made: dict[str, Any] = space["state_at"](step)
    return made


def same(left: dict[str, Any], right: dict[str, Any]) -> bool:
    a, b = flatten(left)[0], flatten(right)[0]
    return set(a) == set(b) and all(
        torch.equal(v, b[n]) if isinstance(v, torch.Tensor) else v == b[n] for n, v in a.items()
    )


def check(store: ObjectStore, acknowledged: list[int], allowed: set[int]) -> int | None:
    """The newest checkpoint is whole, equals its state, and is not older than the last promise."""
    newest = newest_step(store)
    if acknowledged:
        assert newest is not None
        assert newest >= max(acknowledged)
    if newest is not None:
        assert newest in allowed
        with Checkpointer(store) as checkpoints:
            found = checkpoints.load()
        assert found.step == newest
        assert same(found.state, state_at(newest))
        assert found.data == {"pos": newest}
    return newest


@pytest.fixture(params=["local", "s3"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "store")
    return f"{request.getfixturevalue('s3_uri')}/run"


def test_a_save_passes_every_step_of_the_protocol(tmp_path: Path) -> None:
    seen: list[SaveStep] = []
    from rayburst.checkpoint.checkpointer import Options

    with Checkpointer(str(tmp_path), Options(reached=seen.append)) as checkpoints:
        checkpoints.save(state_at(1), step=1)
    assert [s for s in SaveStep if s in seen] == list(SaveStep)
    assert seen[0] is SaveStep.STAGED
    assert seen[-1] is SaveStep.RELEASED


def test_killed_at_every_step(fork: Forker, uri: str) -> None:
    for number, step in enumerate(SaveStep):
        store = ObjectStore.open(uri).child(step.name.lower())
        status, said = fork(
            "save_steps", uri=store.uri, steps=[1, 2, 3], kill_at=step.name, occurrence=2
        )
        assert status == -9, f"{step} was not reached a second time"
        assert said == [1], step
        newest = check(store, said, {1, 2})
        assert newest == (2 if step in VISIBLE else 1), step
        # the next process goes on as if nothing had happened, and garbage can be collected
        status, said = fork("save_steps", uri=store.uri, steps=[3], kill_at=None, occurrence=1)
        assert (status, said) == (0, [3])
        check(store, said, {3})
        done = collect(
            store,
            plan_gc(store, Retention(newest=1)),
            grace_s=0,
            lease_s=0,
            new_id=lambda number=number: str(number),
        )
        check(store, [3], {3})
        assert done.stored_bytes <= 1.1 * done.referenced_bytes


def test_a_collection_killed_at_every_step_harms_nothing(fork: Forker, uri: str) -> None:
    for step in GcStep:
        store = ObjectStore.open(uri).child(f"gc-{step.name.lower()}")
        fork("save_steps", uri=store.uri, steps=list(range(1, 7)), kill_at=None, occurrence=1)
        status, said = fork("collect_once", uri=store.uri, kill_at=step.name, occurrence=1)
        assert (status, said) == (-9, []), f"{step} was not reached"
        assert all(verify(store, kept).whole for kept in (4, 5, 6)), step
        if step is not GcStep.UNLOCKED:
            assert json.loads(store.get(GC_LOCK))["holder"]["pid"] > 0, "the dead one left no name"
        # a dry run needs no lock; the killed one's is taken over at once, for its process is gone
        plan = plan_gc(store, Retention(newest=3))
        collect(store, plan, dry_run=True, grace_s=0, new_id=lambda: "dry")
        # a save goes on beside what the dead collection left, and the next one finishes its work
        assert fork("save_steps", uri=store.uri, steps=[7], kill_at=None, occurrence=1)[0] == 0
        status, [sizes] = fork("collect_once", uri=store.uri, kill_at=None, occurrence=1)
        assert status == 0
        assert sizes[0] <= 1.1 * sizes[1]
        assert [listed.step for listed in steps(store)] == [5, 6, 7]
        assert all(verify(store, kept).whole for kept in (5, 6, 7)), step
        check(store, [7], {7})


def test_a_kill_in_the_very_first_save_leaves_nothing_visible(fork: Forker, uri: str) -> None:
    status, said = fork("save_steps", uri=uri, steps=[1], kill_at="GATHERED", occurrence=1)
    assert (status, said) == (-9, [])
    assert newest_step(ObjectStore.open(uri)) is None


def test_collection_spares_a_live_save_and_takes_a_dead_one(fork: Forker, uri: str) -> None:
    store = ObjectStore.open(uri)
    fork("save_steps", uri=uri, steps=[1], kill_at=None, occurrence=1)
    status, said = fork("stalled_save", uri=uri, step=2)
    assert (status, said) == (-9, ["stalled"])
    plan = plan_gc(store, Retention(newest=1))
    spared = collect(store, plan, grace_s=0, lease_s=900, new_id=lambda: "a")
    assert spared.deleted_objects == 0
    assert spared.spared_bytes > 0
    dry = collect(store, plan, grace_s=0, lease_s=0, dry_run=True, new_id=lambda: "b")
    assert dry.deleted_bytes > 0
    taken = collect(store, plan, grace_s=0, lease_s=0, new_id=lambda: "c")
    assert taken.deleted_bytes == dry.deleted_bytes
    check(store, [1], {1})


def test_a_hundred_saves_under_random_kills_leave_no_garbage(fork: Forker, uri: str) -> None:
    store, draw, step, kills = ObjectStore.open(uri), random.Random(7), 1, 0
    acknowledged: list[int] = []
    while step <= 100:
        status, said = fork(
            "save_until_killed", uri=uri, first=step, last=101, seed=draw.randrange(10**6)
        )
        assert status in (0, -9)
        kills += status == -9
        acknowledged += said
        newest = newest_step(store)
        assert newest is None or newest >= max(acknowledged, default=0)
        step = (newest or 0) + 1
        if draw.random() < 0.3:
            fork("collect_and_be_killed", uri=uri, seed=draw.randrange(10**6))
    assert kills > 10
    assert check(store, acknowledged, {100}) == 100
    done = collect(
        store, plan_gc(store, Retention(newest=3)), grace_s=0, lease_s=0, new_id=lambda: "end"
    )
    kept = [read_manifest(store, n) for n in (98, 99, 100)]
    needed = {chunk for manifest in kept for _, chunk in manifest.chunks()}
    stored = sum(info.size_bytes for info in store.list())
    assert stored <= 1.1 * sum(c.length for c in needed)
    assert done.stored_bytes <= 1.1 * done.referenced_bytes
    check(store, acknowledged, {100})
