"""The DCP StorageWriter: plans and boxes in, content-addressed packs and one manifest out.

    import torch.distributed.checkpoint as dcp
    dcp.save(state, storage_writer=CheckpointWriter(store, step=10, save="<unique>"))

`rayburst.checkpoint.save` is the comfortable way. Rank 0 of the group opens and commits the
session; every rank writes its own packs. Deliberately does not know how state got to the host.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.futures import Future

from rayburst.checkpoint.catalog import read_manifest
from rayburst.checkpoint.chunks import digest_of
from rayburst.checkpoint.drafting import Layout, Piece, Placed, complete, layout_of, place
from rayburst.checkpoint.garbage import garbage_pause
from rayburst.checkpoint.manifest import Manifest, Parent
from rayburst.checkpoint.packs import ChunkIndex, PackWriter
from rayburst.checkpoint.progress import Progress
from rayburst.checkpoint.protocol import Reached, SaveStep, ignore_step, manifest_key
from rayburst.checkpoint.session import HeldSession, SaveSession, Ticket
from rayburst.checkpoint.staging import HostBuffer
from rayburst.checkpoint.store import ObjectStore
from rayburst.errors import (
    CheckpointAbandonedError,
    CheckpointDamagedError,
    CheckpointError,
    CheckpointNotFoundError,
)

__all__ = ["CheckpointWriter", "SaveSettings"]

# small tensors are hashed with the GIL held; without pauses the training waits 5 ms for each call
_BREATH = 64
_PAUSE_S = 5e-5


@dataclass(kw_only=True, slots=True)
class SaveSettings:
    """What one save needs beside the state; the same on every rank but for `about` (rank 0's).

    `rng`: this rank's random state, which the manifest binds beside the other ranks'.
    """

    step: int
    save: str
    created_ms: int
    about: Mapping[str, Any]
    digest: str = "xxh3-128"
    parent: Manifest | None = None  # rank 0: what to build on
    known: tuple[str, ChunkIndex] | None = None  # this rank's chunks of the manifest of this sha256
    reached: Reached = ignore_step
    cancelled: threading.Event = field(default_factory=threading.Event)
    rng: Any = None
    staged: HostBuffer | None = None  # where the bytes lie; without it, where the planner says
    is_held: bool = False  # for a peer's memory alone

    def __post_init__(self) -> None:
        if not 0 <= self.step < 10**12:
            raise CheckpointError(f"step={self.step}: a step is 0 or more, below 10**12")


class CheckpointWriter(StorageWriter):
    """Writes one checkpoint; make a new one for the next."""

    def __init__(self, store: ObjectStore, settings: SaveSettings, progress: Progress) -> None:
        self._store = store
        self._settings = settings
        self._progress = progress
        self._session: SaveSession | None = None
        self._rank = 0
        self.world = 1
        self._packs: PackWriter | None = None
        self._draft: tuple[Manifest, bytes] | None = None
        self.manifest: Manifest | None = None

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        if checkpoint_id is not None:
            raise CheckpointError(
                f"checkpoint_id={checkpoint_id!r}: the writer has its store and step already; "
                f"call dcp.save(state, storage_writer=writer)"
            )

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return False

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        self._rank = int(kwargs.get("rank") or 0)

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        ticket = self.open()
        self.world = len(plans)
        return [replace(plan, storage_data=(rank, ticket)) for rank, plan in enumerate(plans)]

    def open(self) -> Ticket:
        """Coordinator: take the lease; the ticket says whether the parent can be built on."""
        s = self._settings
        parent = None
        if s.parent is not None:
            parent = Parent(step=s.parent.step, save=s.parent.save)
        sha256 = None if s.parent is None else s.parent.sha256
        ticket = Ticket(save=s.save, step=s.step, parent=parent, parent_sha256=sha256)
        session = HeldSession if s.is_held else SaveSession
        self._session = session(self._store, ticket, reached=s.reached)
        if not self._session.begin(s.parent):
            ticket = replace(ticket, parent_sha256=self._rebase(self._session, ticket))
        return ticket

    def _rebase(self, session: SaveSession, ticket: Ticket) -> str | None:
        """The parent's manifest was replaced (compacted) or is gone: take what is there now.

        The bond to the parent stays in any case; without its chunks everything is sent.
        """
        try:
            parent = read_manifest(self._store, ticket.parent.step if ticket.parent else None)
        except (CheckpointNotFoundError, CheckpointDamagedError):
            return None
        return parent.sha256 if session.rebase(parent) else None

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        rank, ticket = plan.storage_data
        future: Future[list[WriteResult]] = Future()
        try:
            placed = self.place_items(plan.items, planner, rank, ticket)
            self.finish_packs()
        finally:
            self.close()
        sizes = [sum(chunk.length for chunk in p.chunks) for p in placed]
        future.set_result(
            [
                WriteResult(index=item.index, size_in_bytes=size, storage_data=p)
                for item, size, p in zip(plan.items, sizes, placed, strict=True)
            ]
        )
        return future

    def place_items(
        self,
        items: Sequence[Piece | WriteItem],
        planner: SavePlanner,
        rank: int,
        ticket: Ticket,
    ) -> list[Placed]:
        """Hash this rank's chunks and give each its place. Packs are on their way on return."""
        s = self._settings
        with garbage_pause():
            packs = self._packs = PackWriter(
                self._store,
                ticket.save,
                rank,
                self._parent_index(ticket),
                digest_of(s.digest),
                self._progress,
                s.cancelled,
                s.reached,
            )
            placed = []
            for number, item in enumerate(items, start=1):
                placed.append(place(item, planner, packs, s.staged))
                if not number % _BREATH:
                    time.sleep(_PAUSE_S)
        packs.place()
        s.reached(SaveStep.PLACED)
        return placed

    def finish_packs(self) -> None:
        """All packs of this rank are on the store when it returns."""
        if self._packs is not None:
            self._packs.finish()
        self._settings.reached(SaveStep.PACKS_DONE)

    def close(self) -> None:
        """End the uploads, finished or not. The staged bytes are free on return."""
        if self._packs is not None:
            self._packs.close()

    def _parent_index(self, ticket: Ticket) -> ChunkIndex:
        s = self._settings
        if ticket.parent is None or ticket.parent_sha256 is None:
            return {}
        if s.known is not None and s.known[0] == ticket.parent_sha256:
            return s.known[1]
        if s.is_held:
            return {}
        parent = read_manifest(self._store, ticket.parent.step)
        if parent.sha256 != ticket.parent_sha256 or parent.digest != s.digest:
            return {}
        return {(c.digest, c.length): c for _, c in parent.chunks()}

    def draft(self, layout: Layout, placed: Iterable[Placed], rngs: Sequence[Any] = ()) -> None:
        """Coordinator: make the manifest while the last packs are on their way; tell the peer.

        `rngs`: every rank's random state.
        """
        if self._session is None:
            raise CheckpointError("draft before prepare_global_plan: DCP calls them in order")
        s = self._settings
        head = Manifest(
            step=s.step,
            save=s.save,
            created_ms=s.created_ms,
            world=self.world,
            digest=s.digest,
            parent=self._session.ticket.parent,
            tensors={},
            objects={},
            paths={},
            about={**s.about, "rng": {str(i): r for i, r in enumerate(rngs) if r is not None}},
        )
        with garbage_pause():
            manifest = complete(head, layout, placed)
            self._draft = (manifest, manifest.encode())
        self._store.announce(manifest_key(manifest.step), self._draft[1])

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        # a box that two ranks wrote is the same box
        placed = {r.index: r.storage_data for rank in results for r in rank}
        self.draft(layout_of(metadata), placed.values())
        self.commit()

    def commit(self) -> Manifest:
        """Coordinator: all packs of all ranks are on the store; make the checkpoint visible."""
        if self._session is None or self._draft is None:
            raise CheckpointError("commit before draft: every rank's chunks need their place")
        if self._settings.cancelled.is_set():
            raise CheckpointAbandonedError(f"save {self._settings.save} was called off")
        self.manifest = self._session.commit(*self._draft)
        return self.manifest

    def abort(self) -> None:
        """After any failure: give the lease back. What was written is garbage for gc."""
        self.close()
        if self._session is not None and self.manifest is None:
            self._session.release()

    @property
    def index(self) -> ChunkIndex:
        """This rank's chunks, for the next save's settings."""
        return {} if self._packs is None else self._packs.index
