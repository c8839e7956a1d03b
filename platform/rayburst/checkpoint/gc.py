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

One collection works at a time (gc_lock.py). A dry run takes no lock, and where it may not write it
goes by this machine's clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from rayburst.checkpoint.catalog import step_numbers, whole_manifests
from rayburst.checkpoint.chunks import Chunk
from rayburst.checkpoint.compact import compact, poor_packs
from rayburst.checkpoint.gc_lock import GcLock, store_time
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
from rayburst.errors import CheckpointError, StoreError

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

    `dry_run` takes no lock, changes nothing and says what would be done.
    `grace_s`: an unreferenced object younger than this stays. `compact_below`: packs whose live
    part is smaller are rewritten; 0 never. `drop_damaged`: delete manifests that cannot be read;
    without it they stop the collection, for what they need is unknown. `reached` hears every step.
    """
    run = _Run(
        store=store,
        plan=plan,
        grace=timedelta(seconds=grace_s),
        lease_s=lease_s,
        compact_below=compact_below,
        drop_damaged=drop_damaged,
        new_id=new_id(),
        reached=reached,
    )
    if dry_run:
        return run.look()
    lock = GcLock.take(store, new_id=run.new_id)
    try:
        reached(GcStep.LOCKED)
        return run.work(lock)
    finally:
        lock.release()
        reached(GcStep.UNLOCKED)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Run:
    """One collection: `work` does it, `look` only says what it would do."""

    store: ObjectStore
    plan: GcPlan
    grace: timedelta
    lease_s: float
    compact_below: float
    drop_damaged: bool
    new_id: str
    reached: GcReached

    def look(self) -> Collected:
        store, now = self.store, self._now_unlocked()
        gone = self._gone()
        manifests, infos = self._what_stays(gone)
        poor = self._poor(manifests, infos, now)
        marks = _mark(store, manifests, now, self.lease_s, without=gone)
        marks.packs -= poor.keys()
        doomed, spared = _sweepable(infos.values(), marks, now - self.grace)
        doomed += _dead_leases(store, now, self.lease_s)
        moved = sum(chunk.length for chunks in poor.values() for chunk in chunks)
        stored = sum(info.size_bytes for info in infos.values())
        return _collected(self.plan.drop, doomed, spared, moved, manifests, stored, dry_run=True)

    def work(self, lock: GcLock) -> Collected:
        store, now = self.store, self._now(GC_LOCK)
        dropped = _drop(store, self.plan, self.drop_damaged, lock)
        self.reached(GcStep.DROPPED)
        manifests, infos = self._what_stays(self._gone())
        moved = 0
        if self._poor(manifests, infos, now):

            def hold(step: GcStep) -> None:
                lock.hold()
                self.reached(step)

            manifests, moved = compact(
                store, manifests, infos, self.compact_below, self.new_id, hold
            )
            infos |= {info.key: info for info in store.list(PACKS) if info.key not in infos}
        marks = _mark(store, manifests, now, self.lease_s, without=set())
        doomed, spared = _sweepable(infos.values(), marks, now - self.grace)
        doomed += _dead_leases(store, now, self.lease_s)
        self.reached(GcStep.MARKED)
        for info in doomed:
            lock.check()
            store.delete(info.key)
            self.reached(GcStep.SWEPT)
        _sweep_staging(store, now - max(self.grace, timedelta(seconds=self.lease_s)))
        left = infos.keys() - {info.key for info in doomed}
        stored = sum(infos[key].size_bytes for key in left)
        return _collected(dropped, doomed, spared, moved, manifests, stored, dry_run=False)

    def _now(self, key: str) -> datetime:
        """The store's time, from an object that was just written."""
        found = self.store.modified(key)
        if found is None:
            raise CheckpointError(
                f"{self.store.uri}/{key}: vanished while collecting; run it again"
            )
        return found

    def _now_unlocked(self) -> datetime:
        try:
            return store_time(self.store, self.new_id)
        except StoreError:  # it may only read: nothing depends on its clock but what is said
            return datetime.now(UTC)

    def _gone(self) -> set[int]:
        return set(self.plan.drop) | (set(self.plan.damaged) if self.drop_damaged else set())

    def _what_stays(self, gone: set[int]) -> tuple[list[Manifest], dict[str, ObjectInfo]]:
        manifests = [m for m in _readable(self.store, gone) if m.step not in gone]
        return manifests, {info.key: info for info in self.store.list(PACKS)}

    def _poor(
        self, manifests: list[Manifest], infos: dict[str, ObjectInfo], now: datetime
    ) -> dict[str, dict[Chunk, str]]:
        if self.compact_below <= 0 or _live_leases(self.store, now, self.lease_s):
            return {}
        return poor_packs(manifests, infos, self.compact_below)


def _collected(
    dropped: tuple[int, ...],
    doomed: list[ObjectInfo],
    spared_bytes: int,
    moved_bytes: int,
    manifests: Iterable[Manifest],
    stored_bytes: int,
    *,
    dry_run: bool,
) -> Collected:
    live = {c for m in manifests for _, c in m.chunks()}
    return Collected(
        dropped_steps=dropped,
        deleted_objects=len(doomed),
        deleted_bytes=sum(info.size_bytes for info in doomed),
        spared_bytes=spared_bytes,
        moved_bytes=moved_bytes,
        referenced_bytes=sum(c.length for c in live),
        stored_bytes=stored_bytes,
        dry_run=dry_run,
    )


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


def _drop(store: ObjectStore, plan: GcPlan, drop_damaged: bool, lock: GcLock) -> tuple[int, ...]:
    newest = step_numbers(store)[:1]
    dropped = [step for step in plan.drop if step not in newest]
    for step in [*dropped, *(plan.damaged if drop_damaged else ())]:
        lock.check()
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
