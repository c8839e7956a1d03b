"""The DCP StorageWriter: plans and boxes in, content-addressed packs and one manifest out.

    import torch.distributed.checkpoint as dcp
    dcp.save(state, storage_writer=CheckpointWriter(store, step=10, save="<unique>"))

`rayburst.checkpoint.save` is the comfortable way. Rank 0 of the group opens and commits the
session; every rank writes its own packs. Deliberately does not know how state got to the host.
"""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    Metadata,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem, WriteItemType
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.futures import Future

from rayburst.checkpoint.catalog import read_manifest
from rayburst.checkpoint.chunks import Chunk, chunk_bytes_for, digest_of
from rayburst.checkpoint.manifest import (
    Manifest,
    Parent,
    Shard,
    StoredObject,
    StoredTensor,
)
from rayburst.checkpoint.packs import ChunkIndex, PackWriter
from rayburst.checkpoint.progress import Progress
from rayburst.checkpoint.protocol import Reached, SaveStep, ignore_step
from rayburst.checkpoint.session import SaveSession, Ticket
from rayburst.checkpoint.staging import Span, bytes_of
from rayburst.checkpoint.store import ObjectStore
from rayburst.errors import (
    CheckpointAbandonedError,
    CheckpointDamagedError,
    CheckpointError,
    CheckpointNotFoundError,
)

__all__ = ["CheckpointWriter", "SaveSettings"]


@dataclass(kw_only=True, slots=True)
class SaveSettings:
    """What one save needs beside the state; the same on every rank but for `about` (rank 0's)."""

    step: int
    save: str
    created_ms: int
    about: Mapping[str, Any]
    digest: str = "xxh3-128"
    parent: Manifest | None = None  # rank 0: what to build on
    known: tuple[str, ChunkIndex] | None = None  # this rank's chunks of the manifest of this sha256
    reached: Reached = ignore_step
    cancelled: threading.Event = field(default_factory=threading.Event)
    spans: Callable[[torch.Tensor], Span] = bytes_of

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
        self._session = SaveSession(self._store, ticket, reached=s.reached)
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
        future.set_result(self.write_items(plan.items, planner, rank, ticket))
        return future

    def write_items(
        self, items: list[WriteItem], planner: SavePlanner, rank: int, ticket: Ticket
    ) -> list[WriteResult]:
        """This rank's packs, all on the store when it returns."""
        s = self._settings
        packs = PackWriter(
            self._store,
            ticket.save,
            rank,
            self._parent_index(ticket),
            digest_of(s.digest),
            self._progress,
            s.cancelled,
            s.reached,
        )
        self._packs = packs
        try:
            results = [_write(item, planner, packs, s.spans) for item in items]
            packs.finish()
        finally:
            packs.close()
        s.reached(SaveStep.PACKS_DONE)
        return results

    def _parent_index(self, ticket: Ticket) -> ChunkIndex:
        s = self._settings
        if ticket.parent is None or ticket.parent_sha256 is None:
            return {}
        if s.known is not None and s.known[0] == ticket.parent_sha256:
            return s.known[1]
        parent = read_manifest(self._store, ticket.parent.step)
        if parent.sha256 != ticket.parent_sha256 or parent.digest != s.digest:
            return {}
        return {(c.digest, c.length): c for _, c in parent.chunks()}

    def finish_with(self, metadata: Metadata, results: list[list[WriteResult]]) -> Manifest:
        """`finish`, and the manifest that it committed."""
        self.finish(metadata, results)
        if self.manifest is None:
            raise CheckpointError("the session ended without a manifest")
        return self.manifest

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        if self._session is None:
            raise CheckpointError("finish before prepare_global_plan: DCP calls them in order")
        if self._settings.cancelled.is_set():
            raise CheckpointAbandonedError(f"save {self._settings.save} was called off")
        self.manifest = self._session.commit(self._build(metadata, results))

    def abort(self) -> None:
        """After any failure: give the lease back. What was written is garbage for gc."""
        if self._session is not None and self.manifest is None:
            self._session.release()

    @property
    def index(self) -> ChunkIndex:
        """This rank's chunks, for the next save's settings."""
        return {} if self._packs is None else self._packs.index

    def _build(self, metadata: Metadata, results: list[list[WriteResult]]) -> Manifest:
        s = self._settings
        by_index = {r.index: r.storage_data for rank in results for r in rank}
        tensors: dict[str, StoredTensor] = {}
        objects: dict[str, StoredObject] = {}
        boxes: dict[str, list[Shard]] = {}
        for index, (kind, box, chunk_bytes, chunks) in by_index.items():
            if kind == "tensor":
                offset, shape = box
                boxes.setdefault(index.fqn, []).append(
                    Shard(offset=offset, shape=shape, chunk_bytes=chunk_bytes, chunks=chunks)
                )
            else:
                objects[index.fqn] = StoredObject(
                    encoding=kind, chunk_bytes=chunk_bytes, chunks=chunks
                )
        for name, stored in metadata.state_dict_metadata.items():
            if isinstance(stored, TensorStorageMetadata):
                tensors[name] = _stored_tensor(name, stored, boxes.get(name, []))
            elif isinstance(stored, BytesStorageMetadata) and name not in objects:
                raise CheckpointError(f"{name}: no rank wrote this leaf")
        ticket_parent = self._session.ticket.parent if self._session is not None else None
        return Manifest(
            step=s.step,
            save=s.save,
            created_ms=s.created_ms,
            world=self.world,
            digest=s.digest,
            parent=ticket_parent,
            tensors=tensors,
            objects=objects,
            paths=_paths(metadata.planner_data, [*tensors, *objects]),
            about=s.about,
        )


def _paths(found: Mapping[str, Any] | None, names: list[str]) -> dict[str, tuple[Any, ...]]:
    """Paths in the manifest's form; DCP's own planners write a list's index as a bare int."""
    if not found:
        return {name: (name,) for name in names}
    return {
        name: tuple([[part] if isinstance(part, int) else part for part in path])
        for name, path in found.items()
    }


def _stored_tensor(name: str, stored: TensorStorageMetadata, shards: list[Shard]) -> StoredTensor:
    covered = sum(_volume(shard.shape) for shard in shards)
    if covered != _volume(tuple(stored.size)):
        raise CheckpointError(
            f"{name}: its pieces hold {covered} of {_volume(tuple(stored.size))} elements. Every "
            f"rank that holds a shard must take part in the save."
        )
    return StoredTensor(
        dtype=str(stored.properties.dtype).removeprefix("torch."),
        shape=tuple(stored.size),
        shards=tuple(sorted(shards, key=lambda shard: shard.offset)),
    )


def _volume(shape: tuple[int, ...]) -> int:
    volume = 1
    for extent in shape:
        volume *= extent
    return volume


def _write(
    item: WriteItem,
    planner: SavePlanner,
    packs: PackWriter,
    spans: Callable[[torch.Tensor], Span],
) -> WriteResult:
    value = planner.resolve_data(item)
    if item.type is WriteItemType.BYTE_IO:
        if not isinstance(value, io.BytesIO):
            raise CheckpointError(f"{item.index.fqn}: the planner gave {type(value)}, not BytesIO")
        span, kind, box = Span.whole(value.getbuffer()), getattr(value, "encoding", "torch"), None
    else:
        if not isinstance(value, torch.Tensor) or item.tensor_data is None:
            raise CheckpointError(f"{item.index.fqn}: the planner gave {type(value)}, no tensor")
        chunk = item.tensor_data.chunk
        span, kind, box = spans(value), "tensor", (tuple(chunk.offsets), tuple(chunk.sizes))
    chunk_bytes = chunk_bytes_for(span.length)
    chunks: tuple[Chunk, ...] = packs.add(span.buffer, chunk_bytes, span.start, span.length)
    return WriteResult(
        index=item.index,
        size_in_bytes=span.length,
        storage_data=(kind, box, chunk_bytes, chunks),
    )
