"""Garbage collection: retention, then mark and sweep, safe beside saves that are under way.

    plan = plan_gc(store, Retention(newest=3))     # the dry run: reads only
    collect(store, plan)

The order makes it safe. First manifests go (and compacted ones are replaced). Only then are the
leases read, and what a live lease writes or builds on stays. A save takes its lease first and
looks at its parent afterwards: either it sees that the parent is gone, or the collection sees
its lease. Keys of packs are never used twice, so a swept name cannot come back to life.

A lease that was not renewed for `LEASE_S` is dead. Times are the store's own (`modified` of an
object that the collection writes), so a clock that is an hour off deletes nothing too early.
Packs of which only a small part is still needed are rewritten: their live chunks move to new
packs and the manifests are replaced by equal ones that point there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from rayburst.checkpoint.catalog import step_numbers, whole_manifests
from rayburst.checkpoint.chunks import Chunk
from rayburst.checkpoint.compact import compact, poor_packs
from rayburst.checkpoint.local_files import staging_files
from rayburst.checkpoint.manifest import Manifest
from rayburst.checkpoint.protocol import (
    GC_LOCK,
    LEASES,
    PACKS,
    PINS,
    GcReached,
    GcStep,
    ignore_step,
    manifest_key,
    pin_key,
    save_of,
)
from rayburst.checkpoint.retention import Retention, keep
from rayburst.checkpoint.session import LEASE_S, read_lease
from rayburst.checkpoint.store import ObjectInfo, ObjectStore
from rayburst.errors import CheckpointError, ObjectExistsError

__all__ = ["Collected", "GcPlan", "collect", "pin", "pinned", "plan_gc", "unpin"]

GRACE_S = 3600.0
WELL_USED = 0.95


@dataclass(frozen=True, kw_only=True, slots=True)
class GcPlan:
    """What a collection would do. `damaged`: step and error of manifests that cannot be read."""

    keep: dict[int, str]
    drop: tuple[int, ...]
    damaged: dict[int, str]
    policy: Retention


@dataclass(frozen=True, kw_only=True, slots=True)
class Collected:
    """What a collection did, or would do (`dry_run`)."""

    dropped_steps: tuple[int, ...]
    deleted_objects: int
    deleted_bytes: int
    spared_bytes: int  # unreferenced, but young or under a live lease
    moved_bytes: int
    referenced_bytes: int
    stored_bytes: int
    dry_run: bool


@dataclass(slots=True)
class _Marks:
    packs: set[str] = field(default_factory=set)
    saves: set[str] = field(default_factory=set)


def pin(store: ObjectStore, step: int) -> None:
    """Keep this step until `unpin`, whatever the retention says."""
    store.put(pin_key(step), b"{}")


def unpin(store: ObjectStore, step: int) -> None:
    """Let the retention decide again."""
    store.delete(pin_key(step))


def pinned(store: ObjectStore) -> frozenset[int]:
    """Pinned steps."""
    keys = [info.key for info in store.list(PINS)]
    return frozenset(int(key.split("/")[1].removesuffix(".json")) for key in keys)


def plan_gc(store: ObjectStore, policy: Retention) -> GcPlan:
    """Which steps stay and which go. Reads only."""
    damaged: dict[int, str] = {}
    found = whole_manifests(store, lambda step, error: damaged.update({step: str(error)}))
    metrics = {m.step: m.about.get("metrics") or {} for m in found}
    kept = keep(policy, list(metrics), metrics, pinned(store))
    drop = tuple(sorted(step for step in metrics if step not in kept))
    return GcPlan(keep=kept, drop=drop, damaged=damaged, policy=policy)


def collect(
    store: ObjectStore,
    plan: GcPlan,
    *,
    dry_run: bool = False,
    grace_s: float = GRACE_S,
    lease_s: float = LEASE_S,
    compact_below: float = WELL_USED,
    drop_damaged: bool = False,
    new_id: Callable[[], str],
    reached: GcReached = ignore_step,
) -> Collected:
    """Carry the plan out. CheckpointError while another collection holds gc.json.

    `grace_s`: an unreferenced object younger than this stays. `compact_below`: packs whose live
    part is smaller are rewritten; 0 never. `drop_damaged`: delete manifests that cannot be read;
    without it they stop the collection, for what they need is unknown. `reached` hears every step.
    """
    now = _take_lock(store, lease_s)
    reached(GcStep.LOCKED)
    try:
        dropped = () if dry_run else _drop(store, plan, drop_damaged)
        reached(GcStep.DROPPED)
        gone = set(plan.drop) | (set(plan.damaged) if drop_damaged else set())
        manifests = [m for m in _readable(store, gone) if m.step not in gone]
        infos = {info.key: info for info in store.list(PACKS)}
        moved, poor = 0, dict[str, dict[Chunk, str]]()
        if compact_below > 0 and not _live_leases(store, now, lease_s):
            poor = poor_packs(manifests, infos, compact_below)
            moved = sum(chunk.length for chunks in poor.values() for chunk in chunks)
        if poor and not dry_run:

            def hold(step: GcStep) -> None:
                _hold(store, lease_s)
                reached(step)

            manifests, moved = compact(store, manifests, infos, compact_below, new_id(), hold)
            infos |= {info.key: info for info in store.list(PACKS) if info.key not in infos}
        marks = _mark(store, manifests, now, lease_s, without=gone if dry_run else set())
        if dry_run:
            marks.packs -= poor.keys()
        doomed, spared = _sweepable(infos.values(), marks, now - timedelta(seconds=grace_s))
        doomed += _dead_leases(store, now, lease_s)
        reached(GcStep.MARKED)
        for info in () if dry_run else doomed:
            store.delete(info.key)
            reached(GcStep.SWEPT)
        if not dry_run:
            _sweep_staging(store, now - timedelta(seconds=max(grace_s, lease_s)))
        live = {c for m in manifests for _, c in m.chunks()}
        freed = sum(info.size_bytes for info in doomed)
        return Collected(
            dropped_steps=plan.drop if dry_run else dropped,
            deleted_objects=len(doomed),
            deleted_bytes=freed,
            spared_bytes=spared,
            moved_bytes=moved,
            referenced_bytes=sum(c.length for c in live),
            stored_bytes=sum(info.size_bytes for info in infos.values())
            - (0 if dry_run else sum(i.size_bytes for i in doomed if i.key in infos)),
            dry_run=dry_run,
        )
    finally:
        store.delete(GC_LOCK)
        reached(GcStep.UNLOCKED)


def _take_lock(store: ObjectStore, lease_s: float) -> datetime:
    """Write gc.json and return the store's time. A dead collection's lock is taken over."""
    try:
        store.put(GC_LOCK, _lock_body(lease_s), if_absent=True)
    except ObjectExistsError:
        held = store.modified(GC_LOCK)
        probe = "gc-clock.json"
        store.put(probe, b"{}")
        now = store.modified(probe)
        store.delete(probe)
        if held is not None and now is not None and now - held < timedelta(seconds=lease_s):
            raise CheckpointError(
                f"{store.uri}/{GC_LOCK}: another collection is at work since {held:%H:%M:%S}. "
                f"Wait for it; if it died, its lock ends {lease_s:.0f} s after that."
            ) from None
        _hold(store, lease_s)
    found = store.modified(GC_LOCK)
    if found is None:
        raise CheckpointError(f"{store.uri}/{GC_LOCK}: vanished while collecting; run it again")
    return found


def _lock_body(lease_s: float) -> bytes:
    return json.dumps({"lease_s": lease_s}).encode()


def _hold(store: ObjectStore, lease_s: float) -> None:
    store.put(GC_LOCK, _lock_body(lease_s))


def _readable(store: ObjectStore, gone: set[int]) -> list[Manifest]:
    damaged: dict[int, str] = {}
    found = list(whole_manifests(store, lambda step, error: damaged.update({step: str(error)})))
    for step, error in damaged.items():
        if step not in gone:
            raise CheckpointError(
                f"{error}. What it needs is unknown, so nothing is collected. Restore that object, "
                f"or give it up: rayburst checkpoints gc {store.uri} --drop-damaged"
            )
    return found


def _drop(store: ObjectStore, plan: GcPlan, drop_damaged: bool) -> tuple[int, ...]:
    newest = step_numbers(store)[:1]
    dropped = [step for step in plan.drop if step not in newest]
    for step in [*dropped, *(plan.damaged if drop_damaged else ())]:
        store.delete(manifest_key(step))
    return tuple(dropped)


def _live_leases(store: ObjectStore, now: datetime, lease_s: float) -> list[ObjectInfo]:
    return [i for i in store.list(LEASES) if now - i.modified < timedelta(seconds=lease_s)]


def _dead_leases(store: ObjectStore, now: datetime, lease_s: float) -> list[ObjectInfo]:
    return [i for i in store.list(LEASES) if now - i.modified >= timedelta(seconds=lease_s)]


def _mark(
    store: ObjectStore,
    manifests: Iterable[Manifest],
    now: datetime,
    lease_s: float,
    without: set[int],
) -> _Marks:
    """What is needed. `without`: steps that a dry run takes for gone."""
    marks = _Marks()
    for manifest in manifests:
        marks.packs |= manifest.packs()
    for info in _live_leases(store, now, lease_s):
        lease = read_lease(store, info.key)
        if lease is not None:
            marks.packs.update(lease["packs"])
            marks.saves.add(save_of(info.key) or "")
    # a save that committed between the first list and its lease's end
    for manifest in whole_manifests(store, lambda _step, _error: None):
        if manifest.step not in without:
            marks.packs |= manifest.packs()
    return marks


def _sweepable(
    infos: Iterable[ObjectInfo], marks: _Marks, before: datetime
) -> tuple[list[ObjectInfo], int]:
    doomed, spared = [], 0
    for info in infos:
        if info.key in marks.packs:
            continue
        if save_of(info.key) in marks.saves or info.modified > before:
            spared += info.size_bytes
        else:
            doomed.append(info)
    return doomed, spared


def _sweep_staging(store: ObjectStore, before: datetime) -> None:
    if store.local_root is None:
        return
    for path in staging_files(store.local_root):
        try:
            if path.stat().st_mtime < before.timestamp():
                path.unlink()
        except FileNotFoundError:
            continue  # its writer finished
