"""Saves in the background and loads, for one folder of checkpoints. The object behind the API.

    checkpoints = Checkpointer("s3://models/run-7")
    handle = checkpoints.async_save({"model": model.state_dict()}, step=100, data={"offset": 5})
    handle.result()                                  # committed, or raises
    loaded = checkpoints.load({"model": model.state_dict()})

Training is blocked while state is copied into reused host memory. One save runs at a time; a save
that finds the last one still uploading waits, skips itself or supersedes it, as `when_busy` says,
and the handle tells which. In a distributed job every rank makes one Checkpointer and calls the
same methods in the same order.

Threads: one for saves; uploads and digests run without the GIL. Deliberately knows no Ray.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from rayburst import __version__
from rayburst.checkpoint.catalog import Listed, newest_step, read_manifest, steps
from rayburst.checkpoint.gc import GRACE_S, Collected, collect, plan_gc
from rayburst.checkpoint.group import Group
from rayburst.checkpoint.loading import Loaded, Ranks, load_checkpoint
from rayburst.checkpoint.manifest import Manifest
from rayburst.checkpoint.packs import ChunkIndex
from rayburst.checkpoint.progress import Bandwidth, Progress
from rayburst.checkpoint.protocol import Reached, SaveStep, ignore_step
from rayburst.checkpoint.retention import Retention
from rayburst.checkpoint.saving import PlanCache, Written, write_checkpoint
from rayburst.checkpoint.staging import HostBuffer, Snapshot
from rayburst.checkpoint.store import ObjectStore
from rayburst.checkpoint.writer import SaveSettings
from rayburst.errors import (
    CheckpointAbandonedError,
    CheckpointDamagedError,
    CheckpointError,
    CheckpointNotFoundError,
)

__all__ = ["Checkpointer", "FlushReport", "Options", "SaveHandle", "Saved"]

WhenBusy = Literal["wait", "skip", "supersede"]
Outcome = Literal["started", "waited", "skipped", "superseded"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """How a Checkpointer works.

    `is_alone`: this process saves and loads by itself, though it is one rank of a group: for state
    that it holds whole, while the group's members come and go.
    `code` names the version of the training code, a commit for example; without it rayburst's own.
    """

    when_busy: WhenBusy = "wait"
    digest: str = "xxh3-128"
    code: str = f"rayburst {__version__}"
    group_timeout_s: float = 600.0
    is_alone: bool = False
    reached: Reached = ignore_step
    clock: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic
    new_id: Callable[[], str] = lambda: secrets.token_hex(8)

    def __post_init__(self) -> None:
        if self.when_busy not in get_args(WhenBusy):
            raise CheckpointError(
                f"when_busy={self.when_busy!r}. Allowed: {', '.join(get_args(WhenBusy))}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Saved:
    """A committed checkpoint, as this rank saw it."""

    uri: str
    step: int
    sha256: str
    state_bytes: int
    sent_bytes: int
    reused_bytes: int
    duration_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class FlushReport:
    """What `flush` expects (`fits`: None where no bandwidth is known) and what came of it."""

    left_bytes: int
    bytes_per_s: float | None
    fits: bool | None
    committed_step: int | None
    abandoned_step: int | None


@dataclass(kw_only=True, slots=True)
class SaveHandle:
    """A save on its way. `outcome` says what happened when it was asked for."""

    step: int
    outcome: Outcome
    blocked_s: float
    superseded_step: int | None = None
    progress: Progress
    only_peer: bool = False
    _future: Future[Saved] | None = None
    _cancelled: threading.Event = field(default_factory=threading.Event)

    def done(self) -> bool:
        """Whether it has ended, either way."""
        return self._future is None or self._future.done()

    def result(self, timeout_s: float | None = None) -> Saved:
        """Wait for the commit. Raises what the save raised, TimeoutError after `timeout_s`."""
        if self._future is None:
            raise CheckpointAbandonedError(
                f"step {self.step} was skipped: the save before it was still uploading "
                f"(when_busy='skip')"
            )
        return self._future.result(timeout_s)


class Checkpointer:
    """See the module's head. Close it, or use it as a context."""

    def __init__(self, uri: str | ObjectStore, options: Options | None = None) -> None:
        self.options = options or Options()
        self.store = uri if isinstance(uri, ObjectStore) else ObjectStore.open(uri)
        self.bandwidth = Bandwidth(self.options.monotonic)
        o = self.options
        self._group = Group(o.group_timeout_s, is_alone=o.is_alone)
        self._control = Group(o.group_timeout_s, is_alone=o.is_alone)
        self._ranks = Ranks(self._group)
        self._buffer = HostBuffer()
        self._cache = PlanCache()
        self._parent: Manifest | None = None
        self._known: tuple[str, ChunkIndex] | None = None
        self._looked = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rayburst-save")
        self._last: SaveHandle | None = None

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def save(self, state: Mapping[Any, Any], *, step: int, **about: Any) -> Saved:
        """Save and wait for the commit. Words as for `async_save`."""
        return self.async_save(state, step=step, when_busy="wait", **about).result()

    def async_save(
        self,
        state: Mapping[Any, Any],
        *,
        step: int,
        data: Any = None,
        rng: Any = None,
        config: Any = None,
        metrics: Mapping[str, float] | None = None,
        when_busy: WhenBusy | None = None,
        only_peer: bool = False,
    ) -> SaveHandle:
        """Copy the state to host memory and return; the rest happens in the background.

        `state` is a nested dict of tensors, DTensors and small values. `data` (position), `rng`
        (this rank's random state), `config` and `metrics` are JSON and bound into the manifest;
        rank 0's are taken, but for `rng`, which every rank gives for itself. `only_peer`: the store
        gets nothing, and what becomes of it is a snapshot in the peer's memory, no checkpoint.
        """
        begun = self.options.monotonic()
        outcome, superseded = self._make_way(when_busy or self.options.when_busy)
        progress = Progress(self.bandwidth)
        if outcome == "skipped":
            blocked = self.options.monotonic() - begun
            return SaveHandle(step=step, outcome=outcome, blocked_s=blocked, progress=progress)
        snapshot = self._buffer.stage(state)
        progress.expect(self._buffer.size_bytes)
        self.options.reached(SaveStep.STAGED)
        handle = SaveHandle(
            step=step,
            outcome=outcome,
            blocked_s=0.0,
            superseded_step=superseded,
            progress=progress,
            only_peer=only_peer,
        )
        words = {"data": data, "config": config, "metrics": dict(metrics or {})}
        handle._future = self._thread.submit(self._run, handle, snapshot, words, rng)
        self._last = handle
        handle.blocked_s = self.options.monotonic() - begun
        return handle

    def _make_way(self, when_busy: WhenBusy) -> tuple[Outcome, int | None]:
        last = self._last
        busy = last is not None and not last.done()
        if self._control.world > 1 and when_busy != "wait":
            # ranks see the end of a save at different moments: rank 0 decides for all; whether a
            # rank waits for its own is its own affair, and costs no talk
            busy = self._control.tell_flag(busy) and last is not None
        if not busy or last is None:
            return "started", None
        if when_busy == "skip":
            return "skipped", None
        if when_busy == "supersede":
            last._cancelled.set()
        committed = _wait(last)
        if when_busy == "supersede" and not committed:
            return "superseded", last.step
        return "waited", None

    def _run(
        self,
        handle: SaveHandle,
        snapshot: Snapshot,
        words: dict[str, Any],
        rng: Any,
    ) -> Saved:
        o, begun = self.options, self.options.monotonic()
        settings = SaveSettings(
            step=handle.step,
            save=f"{handle.step:012d}-{o.new_id()}",
            created_ms=int(o.clock() * 1000),
            about={**words, "code": o.code},
            rng=rng,
            digest=o.digest,
            parent=self._newest(),
            known=self._known,
            reached=o.reached,
            cancelled=handle._cancelled,
            staged=self._buffer,
            is_held=handle.only_peer,
        )
        written = write_checkpoint(
            self.store.only_peer() if handle.only_peer else self.store,
            snapshot,
            settings,
            handle.progress,
            self._group,
            self._cache,
        )
        if not handle.only_peer:  # nothing on the store may build on what is not there
            self._remember(written)
        return Saved(
            uri=self.store.uri,
            step=handle.step,
            sha256=written.sha256,
            state_bytes=self._buffer.size_bytes,
            sent_bytes=handle.progress.sent_bytes,
            reused_bytes=handle.progress.reused_bytes,
            duration_s=o.monotonic() - begun,
        )

    def _newest(self) -> Manifest | None:
        if not self._looked and self._group.rank == 0:
            self._looked = True
            try:
                self._parent = read_manifest(self.store)
            except (CheckpointNotFoundError, CheckpointDamagedError):
                self._parent = None
        return self._parent

    def _remember(self, written: Written) -> None:
        self._parent = written.manifest
        self._known = (written.sha256, written.index)

    def load(
        self,
        state: dict[Any, Any] | None = None,
        *,
        step: int | None = None,
        fallback: bool = False,
        unpickle: bool = False,
    ) -> Loaded:
        """Load the newest checkpoint, or `step`, into `state`, or as plain tensors.

        `state` may have any layout; it is filled in place. `fallback` goes on to older ones when
        a checkpoint is damaged. A save under way is waited for.
        """
        self.wait()
        return load_checkpoint(
            self.store, state, step, ranks=self._ranks, fallback=fallback, unpickle=unpickle
        )

    def latest(self) -> int | None:
        """The newest committed step; None where there is none."""
        return newest_step(self.store)

    def list(self) -> list[Listed]:
        """Committed steps, oldest first."""
        return steps(self.store)

    def collect(
        self, policy: Retention, *, dry_run: bool = False, grace_s: float = GRACE_S
    ) -> Collected:
        """Keep what `policy` says, remove other checkpoints and what nothing refers to.

        Call it on one rank; safe beside saves, of this process and others. `dry_run` only says.
        Unreferenced objects younger than `grace_s` stay. CheckpointError while another collection
        is at work, or where a manifest is damaged.
        """
        plan = plan_gc(self.store, policy)
        return collect(
            self.store, plan, dry_run=dry_run, grace_s=grace_s, new_id=self.options.new_id
        )

    def wait(self, timeout_s: float | None = None) -> None:
        """Wait for the save under way, whatever comes of it; its handle tells."""
        if self._last is not None:
            _wait(self._last, timeout_s)

    def estimate(self) -> FlushReport:
        """What is left of the save under way and how fast the store has been."""
        last = self._last
        busy = last is not None and not last.done()
        left = last.progress.left_bytes() if busy and last is not None else 0
        speed = self.bandwidth.bytes_per_s()
        return FlushReport(
            left_bytes=left,
            bytes_per_s=speed,
            fits=None,
            committed_step=None,
            abandoned_step=None,
        )

    def flush(
        self,
        deadline: float,
        *,
        margin_s: float = 1.0,
        on_estimate: Callable[[FlushReport], None] = lambda _: None,
    ) -> FlushReport:
        """Commit the save under way before `deadline` (a `monotonic` time), or call it off.

        `on_estimate` hears first whether it fits. When the deadline comes the save is called off:
        nothing of it is visible then, and earlier checkpoints stand.
        """
        now = self.options.monotonic()
        before = self.estimate()
        fits: bool | None = before.left_bytes == 0 or None
        if before.left_bytes and before.bytes_per_s:
            fits = before.left_bytes / before.bytes_per_s + margin_s <= deadline - now
        last = self._last
        report = FlushReport(
            left_bytes=before.left_bytes,
            bytes_per_s=before.bytes_per_s,
            fits=fits,
            committed_step=None,
            abandoned_step=None,
        )
        on_estimate(report)
        if last is None or last._future is None:
            return report
        committed = _wait(last, max(0.0, deadline - now))
        if not committed and not last.done():
            last._cancelled.set()
        return FlushReport(
            left_bytes=before.left_bytes,
            bytes_per_s=before.bytes_per_s,
            fits=fits,
            committed_step=last.step if committed else None,
            abandoned_step=None if committed else last.step,
        )

    def close(self) -> None:
        """Wait for the save under way and give everything back."""
        self.wait()
        self._thread.shutdown(wait=True)
        self._ranks.close()
        self._group.close()
        self._control.close()


def _wait(handle: SaveHandle, timeout_s: float | None = None) -> bool:
    """Whether it committed; False for a failure (its handle keeps it) or when time is up."""
    future = handle._future
    if future is None:
        return False
    try:
        return future.exception(timeout_s) is None
    except TimeoutError:
        return False
