"""Plans a save of state that every rank holds whole, as plain data parallelism does.

Each rank describes what it has; when the descriptions are equal, each works out the same dealing
by itself: nothing is planned at rank 0 and sent. Any other state (shards, DTensors, the stages of a
pipeline) is planned by DCP.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
import torch
import xxhash
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import WriteItem, WriteItemType

from rayburst.checkpoint.chunks import chunk_bytes_for
from rayburst.checkpoint.drafting import Layout, Piece
from rayburst.checkpoint.group import Group
from rayburst.checkpoint.planner import slices_of
from rayburst.checkpoint.staging import HostBuffer, Snapshot

__all__ = ["plan_alike"]

_PLAIN = (torch.Tensor, torch.nn.Parameter)
_encoder = msgspec.msgpack.Encoder()


class _Leaf(NamedTuple):
    """A leaf as all ranks must have it; `dtype` is empty for one that is no tensor."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    item_bytes: int


class _Box(NamedTuple):
    """Rows of a leaf: `first` and how many; None for all of it."""

    leaf: _Leaf
    rows: tuple[int, int] | None
    start: int  # of its bytes, within the leaf's
    length: int


def plan_alike(
    snapshot: Snapshot, group: Group, staged: HostBuffer
) -> tuple[list[Piece | WriteItem], Layout] | None:
    """What this rank writes, and the layout of the whole; None unless all ranks hold the same.

    Collective.
    """
    leaves = _describe(snapshot.leaves)
    said = b"" if leaves is None else _encoder.encode((leaves, snapshot.paths))
    row = np.frombuffer(xxhash.xxh3_128_digest(said), dtype=np.uint8).copy()
    rows = group.rows(torch.from_numpy(row))
    if leaves is None or not bool((rows == rows[0]).all()):
        return None
    boxes = [box for leaf in leaves for box in _boxes(leaf)]
    dealt = shares([box.length if box.leaf.dtype else 1 for box in boxes], group.world)
    mine = boxes[dealt[group.rank] : dealt[group.rank + 1]]
    return [_item(box, snapshot, staged) for box in mine], _layout(leaves, snapshot.paths)


def shares(sizes: Sequence[int], world: int) -> list[int]:
    """PURE: where each rank's share of the boxes begins, and the end of the last.

    Shares are runs, so that a rank's bytes lie side by side in its staging memory and are sent from
    there as they are. They differ by no more than the size of a box.
    """
    total = sum(sizes)
    starts, rank, before = [0], 1, 0
    for number, size in enumerate(sizes):
        while rank < world and (before + size / 2) * world > total * rank:
            starts.append(number)
            rank += 1
        before += size
    return starts + [len(sizes)] * (world + 1 - len(starts))


def _describe(leaves: Mapping[str, Any]) -> list[_Leaf] | None:
    found = []
    for name, value in leaves.items():
        if type(value) in _PLAIN:
            dtype = value.dtype
            found.append(
                _Leaf(name, str(dtype).removeprefix("torch."), tuple(value.shape), dtype.itemsize)
            )
        elif isinstance(value, torch.Tensor):
            return None
        else:
            found.append(_Leaf(name, "", (), 0))
    return found


def _boxes(leaf: _Leaf) -> list[_Box]:
    size = math.prod(leaf.shape) * leaf.item_bytes
    pieces = slices_of(leaf.shape, size) if leaf.dtype else 1
    if pieces <= 1:
        return [_Box(leaf, None, 0, size)]
    rows = math.ceil(leaf.shape[0] / pieces)
    row_bytes = size // leaf.shape[0]
    boxes = []
    for first in range(0, leaf.shape[0], rows):
        count = min(rows, leaf.shape[0] - first)
        boxes.append(_Box(leaf, (first, count), first * row_bytes, count * row_bytes))
    return boxes


def _item(box: _Box, snapshot: Snapshot, staged: HostBuffer) -> Piece | WriteItem:
    name, dtype, shape, _ = box.leaf
    if not dtype:
        return WriteItem(index=MetadataIndex(name), type=WriteItemType.BYTE_IO)
    start = staged.span(snapshot.staged[name]).start + box.start if box.length else 0
    first, count = box.rows if box.rows is not None else (0, shape[0] if shape else 0)
    offset = (first, *[0] * (len(shape) - 1)) if shape else ()
    extent = (count, *shape[1:]) if shape else ()
    return Piece(name, (offset, extent), chunk_bytes_for(box.length), start, box.length)


def _layout(leaves: list[_Leaf], paths: Mapping[str, Any]) -> Layout:
    return Layout(
        tensors={
            leaf.name: (leaf.dtype, leaf.shape, math.prod(leaf.shape))
            for leaf in leaves
            if leaf.dtype
        },
        objects=tuple([leaf.name for leaf in leaves if not leaf.dtype]),
        paths=dict(paths),
    )
