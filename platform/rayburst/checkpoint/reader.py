"""The DCP StorageReader: fills any layout from any stored one, every chunk proven.

    dcp.load(state, storage_reader=CheckpointReader(store, step=10))

`rayburst.checkpoint.load` is the comfortable way. Only chunks that a rank needs are read. Whole
boxes go straight into the tensor's memory; others are put together in a buffer first.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future

from rayburst.checkpoint.boxes import box_wants, object_wants
from rayburst.checkpoint.catalog import read_manifest
from rayburst.checkpoint.chunks import digest_of
from rayburst.checkpoint.delivery import Want
from rayburst.checkpoint.fetch import fetch
from rayburst.checkpoint.manifest import Manifest, Shard, StoredObject, StoredTensor, whole
from rayburst.checkpoint.planner import EncodedBytes, StateLoadPlanner, decode_leaf
from rayburst.checkpoint.store import ObjectStore
from rayburst.checkpoint.tree import rebuild
from rayburst.errors import CheckpointError

__all__ = ["CheckpointReader", "read_state", "state_wants", "tensor_wants"]

_PLAIN = (torch.Tensor, torch.nn.Parameter)


class CheckpointReader(StorageReader):
    """Reads one checkpoint; make a new one for the next."""

    def __init__(
        self, store: ObjectStore, step: int | None = None, manifest: Manifest | None = None
    ) -> None:
        self._store = store
        self._step = step
        self.manifest = manifest
        self._shards: dict[MetadataIndex, Shard] = {}

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        if checkpoint_id is not None:
            raise CheckpointError(
                f"checkpoint_id={checkpoint_id!r}: the reader has its store and step already; "
                f"call dcp.load(state, storage_reader=reader)"
            )

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return False

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        manifest = self.manifest or read_manifest(self._store, self._step)
        self.manifest = manifest
        return metadata_of(manifest)

    def set_up_storage_reader(
        self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any
    ) -> None:
        manifest = self._proven()
        for name, tensor in manifest.tensors.items():
            for shard in tensor.shards:
                self._shards[MetadataIndex(name, shard.offset)] = shard

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        manifest = self._proven()
        fetch(self._store, digest_of(manifest.digest), self.wants(plan.items, planner))
        future: Future[None] = Future()
        future.set_result(None)
        return future

    def _proven(self) -> Manifest:
        if self.manifest is None:
            raise CheckpointError("read_metadata comes first: DCP calls them in order")
        return self.manifest

    def wants(self, items: list[ReadItem], planner: LoadPlanner) -> Iterator[Want]:
        """The chunks that these items need, each with where its bytes go."""
        manifest = self._proven()
        for item in items:
            name = item.storage_index.fqn
            if item.type is LoadItemType.BYTE_IO:
                stored = manifest.objects[name]
                yield from object_wants(name, stored, _Leaf(item, planner, stored))
                continue
            shard = self._shards[item.storage_index]
            target = planner.resolve_tensor(item).detach()
            yield from box_wants(
                name, shard, target, tuple(item.storage_offsets), tuple(item.lengths)
            )


class _Leaf:
    """Gives a finished leaf to the planner, in the encoding that the planner reads."""

    def __init__(self, item: ReadItem, planner: LoadPlanner, stored: StoredObject) -> None:
        self._item, self._planner, self._stored = item, planner, stored

    def __call__(self, data: bytes) -> None:
        value = EncodedBytes(data)
        value.encoding = self._stored.encoding
        if not isinstance(self._planner, StateLoadPlanner) and value.encoding == "json":
            leaf = decode_leaf(self._item.storage_index.fqn, "json", data, unpickle=False)
            value = EncodedBytes()
            torch.save(leaf, value)
            value.seek(0)
        self._planner.load_bytes(self._item, value)


def metadata_of(manifest: Manifest) -> Metadata:
    """What DCP's planners need to know. CheckpointDamagedError for chunks that do not add up."""
    stored: dict[str, Any] = {name: BytesStorageMetadata() for name in manifest.objects}
    for name, tensor in manifest.tensors.items():
        dtype = _dtype(name, tensor)
        whole(name, tensor, dtype.itemsize)
        boxes = [
            ChunkStorageMetadata(offsets=torch.Size(s.offset), sizes=torch.Size(s.shape))
            for s in tensor.shards
        ]
        properties = TensorProperties(dtype=dtype)
        stored[name] = TensorStorageMetadata(
            properties=properties, size=torch.Size(tensor.shape), chunks=boxes
        )
    paths = {name: tuple(_plain(part) for part in path) for name, path in manifest.paths.items()}
    return Metadata(state_dict_metadata=stored, planner_data=paths)


def _plain(part: Any) -> Any:
    if isinstance(part, list):
        return part[0]
    return str(part["int"]) if isinstance(part, dict) else part


class _DtypeNames(dict[torch.dtype, str]):
    """A dtype's name in a manifest; torch makes the text anew each time that it is asked."""

    def __missing__(self, dtype: torch.dtype) -> str:
        self[dtype] = str(dtype).removeprefix("torch.")
        return self[dtype]


_NAMES = _DtypeNames()


def _dtype(name: str, tensor: StoredTensor) -> torch.dtype:
    dtype = getattr(torch, tensor.dtype, None)
    if not isinstance(dtype, torch.dtype):
        raise CheckpointError(f"{name}: dtype {tensor.dtype!r} is not known to this torch")
    return dtype


def read_state(store: ObjectStore, manifest: Manifest, *, unpickle: bool = False) -> dict[Any, Any]:
    """The whole nested state as plain CPU tensors, whatever layout it was saved in."""
    wants, finish = state_wants(manifest, unpickle=unpickle)
    fetch(store, digest_of(manifest.digest), wants)
    return finish()


def state_wants(
    manifest: Manifest, *, unpickle: bool = False
) -> tuple[list[Want], Callable[[], dict[Any, Any]]]:
    """What to read for the whole state, and the call that gives it when all is delivered."""
    leaves: dict[str, Any] = {
        name: torch.empty(tensor.shape, dtype=_dtype(name, tensor))
        for name, tensor in manifest.tensors.items()
    }
    wants, _ = tensor_wants(manifest, leaves)
    raw: dict[str, bytes] = {}
    for name, stored in manifest.objects.items():
        wants += object_wants(name, stored, partial(raw.__setitem__, name))

    def finish() -> dict[Any, Any]:
        for name, stored in manifest.objects.items():
            leaves[name] = decode_leaf(name, stored.encoding, raw[name], unpickle=unpickle)
        ordered = {name: leaves[name] for name in manifest.paths if name in leaves}
        return rebuild(ordered, manifest.paths)

    return wants, finish


def tensor_wants(
    manifest: Manifest, targets: Mapping[str, Any]
) -> tuple[list[Want], dict[str, Any]]:
    """Every chunk of the tensors that `targets` takes whole, and what is left of `targets`.

    Left are leaves that are no plain tensors of their stored shape and dtype.
    """
    wants: list[Want] = []
    left: dict[str, Any] = {}
    tensors = manifest.tensors
    for name, target in targets.items():
        stored = tensors.get(name)
        if (
            stored is None
            or type(target) not in _PLAIN
            or target.shape != stored.shape
            or _NAMES[target.dtype] != stored.dtype
        ):
            left[name] = target
            continue
        shards = stored.shards
        if len(shards) == 1 and len(shards[0].chunks) == 1:
            chunk = shards[0].chunks[0]
            if chunk.length == target.nbytes and target.is_cpu and target.is_contiguous():
                wants.append(Want(chunk, name, target))
                continue
        whole(name, stored, target.element_size())
        for shard in shards:
            box = target.detach()
            if shard.shape != stored.shape:
                for dim, (start, size) in enumerate(zip(shard.offset, shard.shape, strict=True)):
                    box = box.narrow(dim, start, size)
            wants += box_wants(name, shard, box, (0,) * len(shard.shape), shard.shape)
    return wants, left
