"""The checkpoints of a run: taken in the background, at the pace that pays, reported, thinned out.

Every rank has one Keeper and calls it at the same steps. Training is blocked while the state is
copied; what the store does with it is learnt at the next save. A save that the store refuses is
told in the log and tried again at the next interval; only the last one of a run must succeed.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections import deque
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import torch.distributed as dist

from rayburst.checkpoint.checkpointer import Checkpointer, Options, Saved, SaveHandle
from rayburst.checkpoint.gc import collect, plan_gc
from rayburst.checkpoint.loading import Loaded
from rayburst.checkpoint.protocol import manifest_key
from rayburst.checkpoint.retention import Retention
from rayburst.checkpoint.store import ObjectStore
from rayburst.errors import CheckpointError, StoreError
from rayburst.train.pace import Pace, checkpoint_pace, mean_between_s
from rayburst.train.peer import Peer, state_bytes
from rayburst.train.runlog import RunLog
from rayburst.train.stays import Stays
from rayburst.train.surroundings import Surroundings

__all__ = ["FOLDER", "Keeper"]

FOLDER = "checkpoints"
DAMAGED = "damaged"
FIRST_S = 10.0
"""The interval until one save was measured."""
TRIES = 8  # of what must succeed; the store's client tries for about 15 s each time
_REMEMBERED = 5
_logger = logging.getLogger(__name__)


class Keeper:
    """Loads, saves and thins out. `every_s`: a fixed interval, None for the measured pace."""

    def __init__(
        self,
        where: Surroundings,
        log: RunLog,
        *,
        every_s: float | None,
        keep: int,
        clock: Callable[[], float],
        peer: Peer | None = None,
    ) -> None:
        self._where, self._log, self._clock, self._peer = where, log, clock, peer
        self._every_s, self._retention = every_s, Retention(newest=keep)
        hosts = {where.place.host: where.place.pool}
        self.stays = Stays.begin(None, hosts=hosts, now_s=clock())
        self._checkpoints = self._checkpointer()
        self._pending: SaveHandle | None = None
        self._metrics: Mapping[str, float] = {}
        self._last: Saved | None = None
        self._told = False
        self._blocked: deque[float] = deque(maxlen=_REMEMBERED)
        self._durable: deque[float] = deque(maxlen=_REMEMBERED)
        self._saved_s = clock()
        self._collecting: threading.Thread | None = None

    def _checkpointer(self) -> Checkpointer:
        return Checkpointer(self._store(), Options(clock=self._clock))

    def _store(self) -> ObjectStore:
        store = self._where.folder.child(FOLDER)
        return store if self._peer is None else self._peer.find(store)

    @property
    def pace(self) -> Pace | None:
        """The interval that pays, with its numbers; None before a save was measured."""
        if not self._blocked or not self._durable:
            return None
        return checkpoint_pace(
            blocked_s=median(self._blocked),
            durable_s=median(self._durable),
            between_s=self.between_s,
        )

    @property
    def between_s(self) -> float:
        """Mean seconds between interruptions of this group, by what was seen."""
        return mean_between_s(self.stays.seen(self._clock()), workers=self.stays.workers)

    @property
    def blocked_s(self) -> float | None:
        """How long training stood still for the last checkpoint; None before one."""
        return self._blocked[-1] if self._blocked else None

    def wants(self) -> bool:
        """Whether a checkpoint is due. Rank 0 decides; a save under way is never overtaken."""
        if self._where.rank != 0 or (self._pending is not None and not self._pending.done()):
            return False
        pace = self.pace
        interval_s = self._every_s or (pace.interval_s if pace else FIRST_S)
        return self._clock() - self._saved_s >= interval_s

    def load(self, state: Callable[[], dict[str, Any]]) -> Loaded | None:
        """The newest whole checkpoint into what `state` gives; None where there is none yet.

        A damaged one is passed over and told. StoreError when the store stays away.
        """
        for attempt in range(1, TRIES + 1):
            try:
                if not self._is_there():
                    return None
                loaded = self._checkpoints.load(state(), fallback=True)
            except StoreError as error:
                if attempt == TRIES:
                    raise
                _logger.warning("the run's checkpoints cannot be read yet: %s", error)
                continue
            if not loaded.committed:
                self._log.write("from-peer", step=loaded.step)
            for words in loaded.refused:
                _logger.warning("a damaged checkpoint was passed over: %s", words)
                self._log.write("damaged", taken=loaded.step, error=words)
            if loaded.refused and self._where.rank == 0:
                self._set_aside(above=loaded.step)
            return loaded
        return None

    def _set_aside(self, above: int) -> None:
        """Move damaged manifests away: their steps will be done, and saved, again."""
        store = self._checkpoints.store
        for listed in self._checkpoints.list():
            if listed.step > above:
                key = manifest_key(listed.step)
                store.put(f"{DAMAGED}/{key.rsplit('/', 1)[-1]}", store.get(key))
                store.delete(key)

    def _is_there(self) -> bool:
        """Whether rank 0 sees a checkpoint; on every rank."""
        found: list[bool | StoreError] = [False]
        if self._where.rank == 0:
            try:
                found[0] = self._has_any()
            except StoreError as error:
                found[0] = error
        if self._where.world > 1:
            dist.broadcast_object_list(found, src=0)
        if isinstance(found[0], StoreError):
            raise found[0]
        return found[0]

    def _has_any(self) -> bool:
        """Whether the store has a checkpoint, or a peer holds one. StoreError."""
        return self._checkpoints.store.held() is not None or self._checkpoints.latest() is not None

    def save(
        self,
        state: Mapping[str, Any],
        *,
        step: int,
        about: Mapping[str, Any],
        metrics: Mapping[str, float],
        began_s: float,
        wait: bool = False,
    ) -> Saved | None:
        """Begin a save of what training did up to `step`; with `wait` also see it committed.

        Returns None when it was not waited for, or did not succeed. `began_s`: since when training
        has stood still for it.
        """
        self._begin(state, step, about=about, metrics=metrics, began_s=began_s)
        return self.settle() if wait else None

    def save_surely(self, state: Mapping[str, Any], *, step: int, **words: Any) -> Saved | None:
        """Save and see it committed, as long as that may take. Raises what the last try raised."""
        for _ in range(TRIES - 1):
            self.settle()
            if self._last is not None and self._last.step == step:
                return self._last
            self._begin(state, step, **words)
        return self._settled()

    def _begin(self, state: Mapping[str, Any], step: int, **words: Any) -> None:
        self.settle()
        self._stage(state, step, **words)

    def _stage(self, state: Mapping[str, Any], step: int, **words: Any) -> None:
        self._pending, blocked_s = self._start_save(state, step, **words)
        self._metrics, self._told = {**words["metrics"], "step": step}, False
        self._saved_s = self._clock()
        self._blocked.append(blocked_s)
        has_peer = self._peer is not None and self._peer.is_found
        self._log.write("checkpoint", step=step, blocked_s=blocked_s, peer=has_peer)

    def _start_save(
        self,
        state: Mapping[str, Any],
        step: int,
        *,
        about: Mapping[str, Any],
        metrics: Mapping[str, float],
        began_s: float,
        only_peer: bool = False,
    ) -> tuple[SaveHandle, float]:
        """The save that is under way, and how long training has stood still for it."""
        self._meet_peer(state)
        handle = self._checkpoints.async_save(
            state, step=step, metrics=metrics, only_peer=only_peer, when_busy="wait", **about
        )
        return handle, self._clock() - began_s

    def _meet_peer(self, state: Mapping[str, Any]) -> None:
        """Save to a peer too, as soon as it is found."""
        if self._peer is not None:
            self._checkpoints.store = self._peer.ready(
                self._checkpoints.store,
                places=self._where.rank == 0,
                needs_bytes=state_bytes(state),
            )

    def snapshots(self, state: Mapping[str, Any], *, step: int, **words: Any) -> bool:
        """Whether what is due is no checkpoint but a snapshot for a peer; then it is taken.

        Every rank, before a `save` that was wanted. Words as for `save`.
        """
        return False

    def poll(self) -> None:
        """Note a save that has ended meanwhile. Cheap, and no other rank is needed."""
        if self._pending is not None:
            self._poll(self._pending)

    def _poll(self, handle: SaveHandle) -> None:
        if self._told or not handle.done():
            return
        self._told = True
        try:
            saved = handle.result()
        except (StoreError, CheckpointError) as error:
            if self._where.rank == 0:
                _logger.warning("step %d is not saved: %s", handle.step, error)
                self._log.write("unsaved", step=handle.step, error=str(error))
            return
        self._durable.append(saved.duration_s)
        if self._where.rank == 0:
            self._log.write(
                "committed",
                step=saved.step,
                uri=f"{self._where.folder.uri}@{saved.step}",
                durable_s=saved.duration_s,
                sent_bytes=saved.sent_bytes,
                pace=_told(self.pace),
            )
            self._thin_out()

    def settle(self) -> Saved | None:
        """Wait for the save under way and report it. Every rank. None when it did not succeed."""
        if self._pending is None:
            return None
        try:
            return self._settled()
        except (StoreError, CheckpointError):
            return None  # poll has told why

    def _settled(self) -> Saved:
        handle, self._pending = self._pending, None
        if handle is None:
            raise CheckpointError("no save is under way")
        self._checkpoints.wait()
        self._poll(handle)
        self._last = handle.result()
        self._where.report(self._metrics, self._last)
        return self._last

    def close(self) -> None:
        """Wait for what is under way."""
        self._checkpoints.close()
        if self._collecting is not None:
            self._collecting.join(30)

    def _thin_out(self) -> None:
        """Drop checkpoints beyond those to keep, in the background, one pass at a time."""
        if self._collecting is not None and self._collecting.is_alive():
            return
        self._collecting = threading.Thread(target=self._collect, name="retention", daemon=True)
        self._collecting.start()

    def _collect(self) -> None:
        store = self._checkpoints.store
        try:
            plan = plan_gc(store, self._retention)
            if plan.drop:
                collect(store, plan, compact_below=0.0, new_id=lambda: secrets.token_hex(8))
        except (StoreError, CheckpointError) as error:
            _logger.warning("old checkpoints stay for now: %s", error)


def _told(pace: Pace | None) -> dict[str, float] | None:
    if pace is None:
        return None
    return {
        "interval_s": pace.interval_s,
        "blocked_s": pace.blocked_s,
        "durable_s": pace.durable_s,
        "between_s": pace.between_s,
    }
