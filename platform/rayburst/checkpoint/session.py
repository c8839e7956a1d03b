"""One save's life on the store: lease, packs, one conditional PUT, hint, release.

The coordinator opens the session and commits it; every rank writes packs under its ticket.

    ticket = begin(...)          lease first, then the parent is looked at again: from here on
                                 no garbage collection removes what the parent needs
    PackWriter(...)              every rank
    commit(manifest)             the manifest's PUT "if absent" is the commit

A reply can be lost, so after a doubtful PUT the manifest is read back: the save that finds its
own id there has won. A save whose lease ran out while it was stalled proves every pack again and
takes its manifest back if one is gone.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from rayburst.checkpoint.manifest import SEAL_BYTES, Manifest, Parent, sealed
from rayburst.checkpoint.protocol import (
    LATEST,
    Reached,
    SaveStep,
    lease_key,
    manifest_key,
    save_of,
)
from rayburst.checkpoint.store import ObjectStore
from rayburst.errors import (
    CheckpointAbandonedError,
    CheckpointDamagedError,
    CheckpointExistsError,
    ObjectExistsError,
    ObjectNotFoundError,
    StoreError,
)

__all__ = ["LEASE_S", "HeldSession", "SaveSession", "Ticket"]

LEASE_S = 900.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Ticket:
    """What every rank must know of a save."""

    save: str
    step: int
    parent: Parent | None
    parent_sha256: str | None = None


class SaveSession:
    """The coordinator's side of one save."""

    def __init__(
        self,
        store: ObjectStore,
        ticket: Ticket,
        *,
        reached: Reached,
        monotonic: Callable[[], float] = time.monotonic,
        lease_s: float = LEASE_S,
    ) -> None:
        self.ticket = ticket
        self._store = store
        self._reached = reached
        self._monotonic = monotonic
        self._lease_s = lease_s
        self._lease = b""
        self._renewed = 0.0
        self._stop = threading.Event()
        self._heart: threading.Thread | None = None

    def begin(self, parent: Manifest | None) -> bool:
        """Take the lease. True if the parent stands; False if the save must do without it.

        CheckpointExistsError: the step is already there.
        """
        self._lease = _lease_body(self.ticket, parent)
        self._renew()
        self._heart = threading.Thread(target=self._beat, name="rayburst-lease", daemon=True)
        self._heart.start()
        self._reached(SaveStep.LEASED)
        with ThreadPoolExecutor(1, thread_name_prefix="rayburst-session") as beside:
            taken = beside.submit(self._store.exists, manifest_key(self.ticket.step))
            stands = parent is None or self._parent_stands(parent)
            if taken.result():
                raise _exists(self._store, self.ticket.step)
        self._reached(SaveStep.PARENT_CONFIRMED)
        return stands

    def rebase(self, parent: Manifest) -> bool:
        """Build on another parent instead: the lease first, then the look, as in `begin`."""
        self._lease = _lease_body(self.ticket, parent)
        self._renew()
        return self._parent_stands(parent)

    def _parent_stands(self, parent: Manifest) -> bool:
        key, size = manifest_key(parent.step), parent.stored_bytes
        try:
            # one that was replaced has another seal, wherever its end is now
            tail = self._store.get_range(key, size - SEAL_BYTES, SEAL_BYTES)
        except ObjectNotFoundError:
            return False
        return sealed(tail) == parent.sha256

    def _renew(self) -> None:
        self._store.put(lease_key(self.ticket.save), self._lease)
        self._renewed = self._monotonic()

    def _beat(self) -> None:
        while not self._stop.wait(self._lease_s / 4):
            try:
                self._renew()
            except StoreError as error:
                _log.warning("the lease was not renewed: %s", error)
                continue  # the age of the lease is looked at again before and after the commit

    def commit(self, manifest: Manifest, data: bytes) -> Manifest:
        """Write the manifest, encoded as `data`, if no other is there. Returns it with its digest.

        CheckpointExistsError: another writer was first. CheckpointAbandonedError: the lease ran
        out and packs are gone. StoreError: the store did not take it.
        """
        self._reached(SaveStep.GATHERED)
        if self._late():
            self._prove(manifest)
        self._put(data)
        if self._late():
            try:
                self._prove(manifest)
            except CheckpointAbandonedError:
                self._store.delete(manifest_key(manifest.step))
                raise
        self._reached(SaveStep.COMMITTED)
        with ThreadPoolExecutor(1, thread_name_prefix="rayburst-session") as beside:
            released = beside.submit(self.release)  # it protects nothing any more
            try:
                hint(self._store, manifest.step)
            except StoreError as error:
                # the manifest is there: the save stands, and a list finds it
                _log.warning(
                    "step %d is committed; its hint is not written: %s", manifest.step, error
                )
            self._reached(SaveStep.HINTED)
            released.result()
        self._reached(SaveStep.RELEASED)
        return replace(manifest, sha256=sealed(data[-SEAL_BYTES:]) or "", stored_bytes=len(data))

    def _put(self, data: bytes) -> None:
        key = manifest_key(self.ticket.step)
        try:
            self._store.put(key, data, if_absent=True)
            return
        except ObjectExistsError:
            if not self._is_ours(key):
                raise _exists(self._store, self.ticket.step) from None
            return
        except StoreError:
            if self._is_ours(key):
                return
            if self._store.exists(key):
                raise
        try:
            self._store.put(key, data, if_absent=True)
        except ObjectExistsError:
            if not self._is_ours(key):
                raise _exists(self._store, self.ticket.step) from None

    def _is_ours(self, key: str) -> bool:
        try:
            found = Manifest.decode(self._store.uri, self._store.get(key))
        except (ObjectNotFoundError, CheckpointDamagedError):
            return False
        return found.save == self.ticket.save

    def _late(self) -> bool:
        return self._monotonic() - self._renewed > self._lease_s * 0.9

    def _prove(self, manifest: Manifest) -> None:
        gone = [pack for pack in sorted(manifest.packs()) if not self._store.exists(pack)]
        if gone:
            raise CheckpointAbandonedError(
                f"step {manifest.step}: the save was stalled for longer than its lease "
                f"({self._lease_s:.0f} s) and {self._store.uri}/{gone[0]} was collected; save again"
            )

    def release(self) -> None:
        """Give the lease back; also after a failure, so that garbage can be collected."""
        self._stop.set()
        if self._heart is not None:
            self._heart.join()
        try:
            self._store.delete(lease_key(self.ticket.save))
        except StoreError as error:
            _log.warning("a lease stays until it is dead: %s", error)


class HeldSession(SaveSession):
    """Of a save that is for a peer's memory alone: the store knows nothing of it.

    What it builds on is not asked for: the peer has it, or fetches it.
    """

    def begin(self, parent: Manifest | None) -> bool:
        return True

    def commit(self, manifest: Manifest, data: bytes) -> Manifest:
        self._store.put(manifest_key(manifest.step), data)
        return replace(manifest, sha256=sealed(data[-SEAL_BYTES:]) or "", stored_bytes=len(data))

    def release(self) -> None:
        """There is no lease."""


def hint(store: ObjectStore, step: int) -> None:
    """Point latest.json at `step`, unless it points further."""
    known = hinted(store)
    if known is None or known < step:
        store.put(LATEST, json.dumps({"step": step}).encode())


def hinted(store: ObjectStore) -> int | None:
    """The step that latest.json points at; None where it is missing or unreadable."""
    try:
        value = json.loads(store.get(LATEST))["step"]
    except (ObjectNotFoundError, ValueError, KeyError, TypeError):
        return None
    return value if isinstance(value, int) else None


def read_lease(store: ObjectStore, key: str) -> dict[str, Any] | None:
    """The lease at `key`; None where it has gone meanwhile."""
    try:
        body: dict[str, Any] = json.loads(store.get(key))
    except ObjectNotFoundError:
        return None
    except ValueError:
        return {"save": save_of(key), "packs": []}
    return body


def _lease_body(ticket: Ticket, parent: Manifest | None) -> bytes:
    return json.dumps(
        {
            "save": ticket.save,
            "step": ticket.step,
            "parent": None if parent is None else parent.step,
            "packs": [] if parent is None else sorted(parent.packs()),
        }
    ).encode()


def _exists(store: ObjectStore, step: int) -> CheckpointExistsError:
    return CheckpointExistsError(
        f"step {step} is already saved at {store.uri}/{manifest_key(step)} by another writer, and "
        f"that checkpoint stands. Load it, or save under another step or folder."
    )
