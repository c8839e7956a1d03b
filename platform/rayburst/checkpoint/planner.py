"""How rayburst plans a save and a load on top of torch.distributed.checkpoint (DCP).

DCP decides which rank writes which box of which tensor, and how stored boxes fill other ones.
Added here: large replicated tensors are cut into rows of 2 MiB or more so that all replicas share
the work; the dealing counts each piece's own bytes; leaves that are no tensors become JSON where
JSON holds them exactly; a load refuses other shapes and dtypes instead of converting.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.distributed.checkpoint.default_planner import (
    DefaultLoadPlanner,
    DefaultSavePlanner,
    create_default_global_save_plan,
    create_default_local_load_plan,
    create_default_local_save_plan,
)
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    ReadItem,
    SavePlan,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)

from rayburst.checkpoint.staging import local_tensor
from rayburst.checkpoint.tree import flatten, place
from rayburst.errors import CheckpointError

__all__ = ["EncodedBytes", "StateLoadPlanner", "StateSavePlanner"]

SLICE_BYTES = 2 * 1024 * 1024
_SLICES = 64
BUNDLE_BYTES = 1024 * 1024
_BUNDLES = 16  # or more for each rank, so that all get their share


class EncodedBytes(io.BytesIO):
    """Bytes of a leaf that is no tensor, and how they are encoded: "json" or "torch"."""

    encoding = "torch"


def encode_leaf(value: Any) -> EncodedBytes:
    """JSON where it comes back the same, else a torch.save file."""
    try:
        text = json.dumps(value, separators=(",", ":"))
        if _same(json.loads(text), value):
            encoded = EncodedBytes(text.encode())
            encoded.encoding = "json"
            return encoded
    except (TypeError, ValueError):
        pass
    encoded = EncodedBytes()
    torch.save(value, encoded)
    encoded.seek(0)
    return encoded


def _same(back: Any, value: Any) -> bool:
    if type(back) is not type(value):
        return False
    if isinstance(value, dict):
        return list(back) == list(value) and all(_same(back[k], v) for k, v in value.items())
    if isinstance(value, list):
        return len(back) == len(value) and all(map(_same, back, value))
    return bool(back == value or value != value)


def decode_leaf(name: str, encoding: str, data: bytes | memoryview, *, unpickle: bool) -> Any:
    """The leaf again. CheckpointError for one that only unpickling could make."""
    if encoding == "json":
        return json.loads(bytes(data))
    try:
        return torch.load(io.BytesIO(data), weights_only=not unpickle)
    except Exception as error:
        if unpickle:
            raise
        raise CheckpointError(
            f"{name}: this leaf was pickled and may run code when loaded ({type(error).__name__}). "
            f"If you trust who wrote the checkpoint: load(..., unpickle=True)"
        ) from None


class StateSavePlanner(DefaultSavePlanner):
    """Plans a save; see the module's head. Bytes come from `staged` where it is given."""

    def __init__(self, staged: Mapping[str, Any] | None = None) -> None:
        super().__init__(flatten_sharded_tensors=False)
        self._staged = staged

    def take(self, leaves: dict[str, Any], paths: dict[str, Any]) -> None:
        """Plan for a state that is flat already; instead of `set_up_planner`."""
        self.state_dict, self.mappings = leaves, paths
        self.is_coordinator = False

    def set_up_planner(
        self,
        state_dict: dict[str, Any],
        storage_meta: StorageMeta | None = None,
        is_coordinator: bool = False,
    ) -> None:
        self.state_dict, self.mappings = flatten(state_dict)
        self.is_coordinator = is_coordinator

    def create_local_plan(self) -> SavePlan:
        large = {k: v for k, v in self.state_dict.items() if _slices(v) > 1}
        rest = {k: v for k, v in self.state_dict.items() if k not in large}
        items = create_default_local_save_plan(rest, self.is_coordinator).items
        for name, tensor in large.items():
            items += _row_items(name, tensor)
        self.plan = SavePlan(items, planner_data=self.mappings)
        return self.plan

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        plans, metadata = create_default_global_save_plan(deal(all_plans))
        paths: dict[str, Any] = {}
        for plan in all_plans:
            for name, path in plan.planner_data.items():
                paths.setdefault(name, path)
        self.global_plan = plans
        self.metadata = dataclasses.replace(metadata, planner_data=paths)
        return plans, self.metadata

    def finish_plan(self, new_plan: SavePlan) -> SavePlan:
        self.plan = new_plan
        return new_plan

    def resolve_data(self, write_item: WriteItem) -> Any:
        leaves = self.state_dict if self._staged is None else self._staged
        value = leaves[write_item.index.fqn]
        if write_item.type is WriteItemType.BYTE_IO:
            return encode_leaf(value)
        local = local_tensor(value)
        box = write_item.tensor_data.chunk if write_item.tensor_data is not None else None
        if local is None or box is None or local.shape == box.sizes:
            return local
        return local.narrow(0, box.offsets[0], box.sizes[0])


def _slices(value: Any) -> int:
    if type(value) not in (torch.Tensor, torch.nn.Parameter):
        return 1
    return slices_of(tuple(value.shape), value.numel() * value.element_size())


def slices_of(shape: tuple[int, ...], size_bytes: int) -> int:
    """PURE: into how many runs of rows a replicated tensor is cut; 0 or 1 for not at all."""
    if not shape:
        return 1
    slice_bytes = max(SLICE_BYTES, size_bytes // _SLICES)
    return min(shape[0], math.ceil(size_bytes / slice_bytes))


def _row_items(name: str, tensor: torch.Tensor) -> list[WriteItem]:
    rows = math.ceil(tensor.shape[0] / _slices(tensor))
    properties = TensorProperties.create_from_tensor(tensor)
    items = []
    for first in range(0, tensor.shape[0], rows):
        offset = torch.Size([first] + [0] * (tensor.dim() - 1))
        extent = torch.Size([min(rows, tensor.shape[0] - first), *tensor.shape[1:]])
        box = ChunkStorageMetadata(offsets=offset, sizes=extent)
        items.append(
            WriteItem(
                index=MetadataIndex(name, offset),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(chunk=box, properties=properties, size=tensor.size()),
            )
        )
    return items


def deal(plans: list[SavePlan]) -> list[SavePlan]:
    """Each box to one of the ranks that hold it: the one with the fewest bytes so far.

    Small neighbours go together: their bytes lie side by side, and are sent as one piece.
    """
    holders: dict[MetadataIndex, list[int]] = {}
    sizes: dict[MetadataIndex, int] = {}
    for rank, plan in enumerate(plans):
        for item in plan.items:
            holders.setdefault(item.index, []).append(rank)
            sizes[item.index] = _item_bytes(item)
    dealt = deal_sizes(list(sizes.values()), list(map(tuple, holders.values())), len(plans))
    chosen = dict(zip(sizes, dealt, strict=True))
    return [
        dataclasses.replace(plan, items=[i for i in plan.items if chosen[i.index] == rank])
        for rank, plan in enumerate(plans)
    ]


def deal_sizes(sizes: Sequence[int], holders: Sequence[tuple[int, ...]], world: int) -> list[int]:
    """PURE: for each box, of a size in bytes, the one of its holders that writes it."""
    load = [0] * world
    chosen = [0] * len(sizes)
    limit = min(BUNDLE_BYTES, sum(sizes) // (_BUNDLES * world))
    bundles = list(_bundles(sizes, holders, limit))
    for size, first, stop in sorted(bundles, key=lambda b: -b[0]):  # stable: large ones first
        rank = min(holders[first], key=load.__getitem__)
        load[rank] += size
        chosen[first:stop] = [rank] * (stop - first)
    return chosen


def _bundles(
    sizes: Sequence[int], holders: Sequence[tuple[int, ...]], limit: int
) -> Iterator[tuple[int, int, int]]:
    """Neighbours with the same holders, up to `limit` bytes: (bytes, first, one past the last)."""
    first, filled = 0, 0
    for number, size in enumerate(sizes):
        if number > first and (filled + size > limit or holders[number] != holders[first]):
            yield filled, first, number
            first, filled = number, 0
        filled += size
    if sizes:
        yield filled, first, len(sizes)


def _item_bytes(item: WriteItem) -> int:
    data = item.tensor_data
    if data is None:
        return 1
    return math.prod(data.chunk.sizes) * int(data.properties.dtype.itemsize)


class StateLoadPlanner(DefaultLoadPlanner):
    """Fills an existing state in place; leaves that are no tensors are set in its containers."""

    def __init__(self, *, unpickle: bool = False, filled: Collection[str] = ()) -> None:
        """`filled`: names that somebody else fills."""
        super().__init__(flatten_sharded_tensors=False)
        self._unpickle = unpickle
        self._filled = filled

    def set_up_planner(
        self,
        state_dict: dict[str, Any],
        metadata: Metadata | None = None,
        is_coordinator: bool = False,
    ) -> None:
        self.original_state_dict = state_dict
        leaves, self.mappings = flatten(state_dict)
        self.state_dict = {n: v for n, v in leaves.items() if n not in self._filled}
        self.metadata = metadata
        self.is_coordinator = is_coordinator

    def create_local_plan(self) -> LoadPlan:
        if self.metadata is None:
            raise CheckpointError("set_up_planner comes first: DCP calls them in order")
        fits(self.state_dict, self.metadata.state_dict_metadata)
        return create_default_local_load_plan(self.state_dict, self.metadata, strict=True)

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        name = read_item.dest_index.fqn
        encoding = getattr(value, "encoding", "torch")
        leaf = decode_leaf(name, encoding, value.getbuffer(), unpickle=self._unpickle)
        place(self.original_state_dict, self.mappings[name], leaf)


def fits(state: dict[str, Any], stored: dict[str, Any]) -> None:
    """CheckpointError unless every leaf of `state` can be filled from `stored`."""
    missing = [name for name in state if name not in stored]
    if missing:
        raise CheckpointError(
            f"{len(missing)} leaves of the state are not in the checkpoint: "
            f"{', '.join(missing[:5])}. It has: {', '.join(list(stored)[:5])}, ... "
            f"Load without them, or load(uri) alone to see all."
        )
    for name, value in state.items():
        have = stored[name]
        if not isinstance(value, torch.Tensor) or not isinstance(have, TensorStorageMetadata):
            if isinstance(value, torch.Tensor) != isinstance(have, TensorStorageMetadata):
                raise CheckpointError(f"{name}: a tensor here and no tensor there; rename one")
            continue
        if value.shape != have.size or value.dtype != have.properties.dtype:
            raise CheckpointError(
                f"{name}: the checkpoint has {have.properties.dtype} {tuple(have.size)}, the "
                f"state {value.dtype} {tuple(value.shape)}. Make the state's tensor the same."
            )
