"""One collection at a time: gc.json, who holds it, and how it passes on when the holder is dead.

    lock = GcLock.take(store, new_id=...)    # CheckpointError while a living collection holds it
    lock.hold()                              # before every step that another could harm
    lock.release()

The holder writes who it is and renews gc.json every `BEAT_S`. Another collection takes it over when
its holder is provably gone (a process of this very machine that is no more), or when it was not
renewed for `LOCK_S` by the store's clock. Every write of gc.json after the first names the writing
that it replaces, so of two that take over one wins, and a holder that was only stalled finds out at
its next `hold`.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from rayburst.checkpoint.protocol import GC_LOCK
from rayburst.checkpoint.store import ObjectStore, Tag
from rayburst.errors import CheckpointError, ObjectExistsError, ObjectNotFoundError, StoreError

__all__ = ["BEAT_S", "LOCK_S", "GcLock", "Holder", "store_time"]

LOCK_S = 180.0
BEAT_S = 30.0
_OLD_LOCK_S = 900.0  # of gc.json as rayburst 0.1 first wrote it, without a holder
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Holder:
    """A process that collects. `machine`: its boot and its process ids' namespace."""

    id: str
    host: str
    pid: int
    started: str
    machine: str

    @classmethod
    def this_process(cls, new_id: str) -> Holder:
        """This one."""
        pid = os.getpid()
        return cls(
            id=new_id,
            host=socket.gethostname(),
            pid=pid,
            started=_started(pid) or "",
            machine=_machine(),
        )

    def is_gone(self) -> bool:
        """Whether it is proven that it runs no more. False where that cannot be known here."""
        if not self.machine or self.machine != _machine():
            return False
        return _started(self.pid) != self.started

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def _machine() -> str:
    """Equal for processes that see the same process ids; empty where that is unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _started(pid: int) -> str | None:
    """When a process started, in the kernel's ticks; None for one that is dead."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


class GcLock:
    """A held lock. Make it with `take`."""

    def __init__(
        self, store: ObjectStore, holder: Holder, tag: Tag, monotonic: Callable[[], float]
    ) -> None:
        self._store = store
        self._holder = holder
        self._tag = tag
        self._count = 0
        self._monotonic = monotonic
        self._renewed = monotonic()
        self._lost: str | None = None
        self._busy = threading.Lock()
        self._stop = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="rayburst-gc", daemon=True)
        self._heart.start()

    @classmethod
    def take(
        cls,
        store: ObjectStore,
        *,
        new_id: str,
        lock_s: float = LOCK_S,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> GcLock:
        """Hold gc.json. CheckpointError, with the holder's name, while another does."""
        holder = Holder.this_process(new_id)
        body = _body(holder, 0)
        try:
            return cls(store, holder, store.put(GC_LOCK, body, if_absent=True), monotonic)
        except ObjectExistsError:
            pass
        try:
            data, tag = store.get_tagged(GC_LOCK)
            if data != body:  # else it is ours: the reply to the first try was lost
                _refuse_living(store, data, lock_s)
                tag = store.replace(GC_LOCK, body, tag)
        except (ObjectNotFoundError, ObjectExistsError):
            raise CheckpointError(
                f"{store.uri}/{GC_LOCK}: another collection began or ended at this moment; "
                f"run it again"
            ) from None
        return cls(store, holder, tag, monotonic)

    def check(self) -> None:
        """CheckpointError if another took over. Sends nothing."""
        if self._lost is not None:
            raise CheckpointError(self._lost)

    def hold(self) -> None:
        """Renew now. CheckpointError if another took over: this collection was taken for dead."""
        with self._busy:
            self.check()
            body = _body(self._holder, self._count + 1)
            try:
                self._tag = self._store.replace(GC_LOCK, body, self._tag)
            except ObjectExistsError:
                self._tag = self._ours(body)
            self._count += 1
            self._renewed = self._monotonic()

    def _ours(self, body: bytes) -> Tag:
        """After a refusal: the reply may have been lost. CheckpointError if it is another's."""
        try:
            data, tag = self._store.get_tagged(GC_LOCK)
        except ObjectNotFoundError:
            data = b""
        if data != body:
            self._lost = (
                f"{self._store.uri}/{GC_LOCK}: another collection took over, for this one gave no "
                f"sign of life. Nothing is lost; run it again when the other is done."
            )
            raise CheckpointError(self._lost)
        return tag

    def _beat(self) -> None:
        while not self._stop.wait(BEAT_S):
            try:
                self.hold()
            except CheckpointError:
                return  # `check` and `hold` tell the collection
            except StoreError as error:
                _log.warning("the collection's lock was not renewed: %s", error)

    def release(self) -> None:
        """Give it back, if it is still ours."""
        self._stop.set()
        self._heart.join()
        if self._lost is not None:
            return
        try:
            if _read(self._store.get(GC_LOCK))[0] == self._holder:
                self._store.delete(GC_LOCK)
        except ObjectNotFoundError:
            return


def store_time(store: ObjectStore, new_id: str) -> datetime:
    """The time by the store's clock, which alone can be compared with the times of objects."""
    key = f"gc-clock-{new_id}.json"
    store.put(key, b"{}")
    found = store.modified(key)
    store.delete(key)
    if found is None:
        raise StoreError(f"{store.uri}/{key}: vanished right after it was written")
    return found


def _body(holder: Holder, count: int) -> bytes:
    words = {name: getattr(holder, name) for name in Holder.__slots__}
    return json.dumps({"holder": words, "renewed": count}).encode()


def _read(data: bytes) -> tuple[Holder | None, float]:
    """(holder, seconds after which it is dead), for a lock of any version."""
    try:
        body: Any = json.loads(data)
        return Holder(**body["holder"]), LOCK_S
    except (ValueError, KeyError, TypeError):
        return None, _OLD_LOCK_S


def _refuse_living(store: ObjectStore, data: bytes, lock_s: float) -> None:
    holder, limit_s = _read(data)
    if holder is not None and holder.is_gone():
        _log.warning("%s was ended while it collected garbage; its lock is taken over", holder)
        return
    limit_s = min(limit_s, lock_s)
    seen, now = store.modified(GC_LOCK), store_time(store, f"{os.getpid()}-{id(data):x}")
    if seen is None or now - seen >= timedelta(seconds=limit_s):
        return
    ago_s = (now - seen).total_seconds()
    raise CheckpointError(
        f"{store.uri}/{GC_LOCK}: {holder or 'another process'} is collecting; it gave a sign of "
        f"life {ago_s:.0f} s ago. Wait for it; if it died, its lock ends {limit_s:.0f} s after "
        f"that sign. A dry run (`rayburst checkpoints gc` without --delete) needs no lock."
    )
