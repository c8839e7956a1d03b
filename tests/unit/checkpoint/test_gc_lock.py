"""Who may collect: a living collection alone, and its successor when it is dead."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rayburst.checkpoint import compact, gc_lock
from rayburst.checkpoint.checkpointer import Checkpointer
from rayburst.checkpoint.gc import collect, plan_gc
from rayburst.checkpoint.gc_lock import GcLock, Holder
from rayburst.checkpoint.manifest import Manifest
from rayburst.checkpoint.protocol import GC_LOCK, GcStep, manifest_key
from rayburst.checkpoint.retention import Retention
from rayburst.checkpoint.store import ObjectStore
from rayburst.checkpoint.verify import verify
from rayburst.errors import CheckpointError, ObjectExistsError


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return ObjectStore.open(tmp_path / "store")


def put_lock(store: ObjectStore, holder: Holder) -> None:
    store.put(GC_LOCK, gc_lock._body(holder, 0))


def test_a_living_collection_is_named_and_waited_for(store: ObjectStore) -> None:
    lock = GcLock.take(store, new_id="a")
    with pytest.raises(CheckpointError, match=r"process \d+ on .* is collecting.*sign of life"):
        GcLock.take(store, new_id="b")
    lock.hold()
    lock.release()
    GcLock.take(store, new_id="c").release()
    assert not store.exists(GC_LOCK)


def test_a_dead_holder_of_this_machine_is_known_at_once(store: ObjectStore) -> None:
    done = subprocess.run(
        [sys.executable, "-S", "-c", "import os; print(os.getpid())"],
        capture_output=True,
        text=True,
        check=True,
    )
    holder = replace(Holder.this_process("dead"), pid=int(done.stdout))
    assert holder.is_gone()
    put_lock(store, holder)
    GcLock.take(store, new_id="heir").release()


def test_a_process_id_that_was_given_again_does_not_pass_for_the_holder() -> None:
    mine = Holder.this_process("x")
    assert not mine.is_gone()
    assert replace(mine, started="1").is_gone()
    # of another machine nothing can be known
    assert not replace(mine, machine="elsewhere", started="1").is_gone()


def test_a_holder_elsewhere_is_dead_when_it_gives_no_sign(store: ObjectStore) -> None:
    put_lock(store, replace(Holder.this_process("x"), machine="elsewhere", host="gpu-7"))
    with pytest.raises(CheckpointError, match=r"on gpu-7 is collecting.*ends 180 s after"):
        GcLock.take(store, new_id="early")
    GcLock.take(store, new_id="late", lock_s=0).release()


def test_a_lock_of_an_older_version_lives_as_long_as_it_said(store: ObjectStore) -> None:
    store.put(GC_LOCK, json.dumps({"lease_s": 900}).encode())
    with pytest.raises(CheckpointError, match=r"another process is collecting.*ends 900 s after"):
        GcLock.take(store, new_id="x", lock_s=10_000)


def test_a_collection_that_was_only_stalled_finds_out(store: ObjectStore) -> None:
    stalled = GcLock.take(store, new_id="stalled")
    heir = GcLock.take(store, new_id="heir", lock_s=0)
    with pytest.raises(CheckpointError, match="another collection took over"):
        stalled.hold()
    with pytest.raises(CheckpointError, match="another collection took over"):
        stalled.check()
    stalled.release()
    heir.hold()
    heir.release()


def test_of_two_that_take_over_one_wins(store: ObjectStore) -> None:
    put_lock(store, replace(Holder.this_process("x"), machine="elsewhere"))
    _, tag = store.get_tagged(GC_LOCK)
    fresh = store.replace(GC_LOCK, b"{}", tag)
    with pytest.raises(ObjectExistsError):
        store.replace(GC_LOCK, b"{}", tag)
    assert store.get_tagged(GC_LOCK) == (b"{}", fresh)


def filled(store: ObjectStore) -> None:
    """Steps 1 to 6, of which gc with newest=1 keeps a badly used pack of step 1."""
    with Checkpointer(store) as checkpoints:
        for step in range(1, 7):
            state = {f"p{i}": torch.full((30_000,), float(i)) for i in range(20)}
            state["p0"] += step
            state |= {f"p{i}": torch.full((30_000,), float(step + i)) for i in range(10)}
            checkpoints.save(state, step=step)


def test_a_dry_run_needs_no_lock_and_writes_nothing_that_stays(store: ObjectStore) -> None:
    filled(store)
    lock = GcLock.take(store, new_id="other")
    before = sorted((info.key, info.size_bytes) for info in store.list())
    plan = plan_gc(store, Retention(newest=1))
    said = collect(store, plan, dry_run=True, grace_s=0, new_id=lambda: "dry")
    assert said.deleted_objects > 0
    assert said.moved_bytes > 0
    assert sorted((info.key, info.size_bytes) for info in store.list()) == before
    lock.release()


def test_a_stalled_collection_publishes_nothing_over_its_successors_work(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It passed its last look at the lock, and slept: the successor does all and is done."""
    filled(store)
    plain = compact._publish
    stalled: list[bool] = []

    def publish(inner: ObjectStore, manifest: Manifest, moves: compact.Moves) -> Manifest:
        if not stalled:
            stalled.append(True)
            heir = GcLock.take(store, new_id="take over", lock_s=0)
            heir.release()
            collect(store, plan_gc(store, Retention(newest=1)), grace_s=0, new_id=lambda: "heir")
        return plain(inner, manifest, moves)

    monkeypatch.setattr(compact, "_publish", publish)
    with pytest.raises(CheckpointError, match=r"another collection is at work|took over"):
        collect(store, plan_gc(store, Retention(newest=1)), grace_s=0, new_id=lambda: "slow")
    assert stalled
    assert verify(store, 6).whole
    kept = Manifest.decode("m", store.get(manifest_key(6)))
    assert any("gc-heir" in pack for pack in kept.packs())


def test_every_step_is_passed(store: ObjectStore) -> None:
    filled(store)
    seen: list[GcStep] = []
    plan = plan_gc(store, Retention(newest=1))
    collect(store, plan, grace_s=0, new_id=lambda: "x", reached=seen.append)
    assert [step for step in GcStep if step in seen] == list(GcStep)
