"""Proven bytes to where they belong: whole tensors in batches, everything else one by one.

A state can have ten thousand small tensors. Their chunks lie end to end in a pack, so a run of them
is cut into tensors by one call of torch and copied by a second, without Python for each.

Deliberately does not know where the bytes come from, and proves nothing.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch._utils import _unflatten_dense_tensors

from rayburst.checkpoint.chunks import Chunk

__all__ = ["Deliver", "Want", "deliver", "takes_whole"]

Deliver = Callable[[memoryview], None]


class Want(NamedTuple):
    """A chunk, the leaf it belongs to (for messages), and where its bytes go.

    `to` is a call, or a contiguous host tensor that the chunk fills whole.
    """

    chunk: Chunk
    name: str
    to: Deliver | torch.Tensor


def takes_whole(target: torch.Tensor) -> bool:
    """Whether a tensor may be the `to` of a Want."""
    return target.is_cpu and target.is_contiguous()


def deliver(wants: Sequence[Want], data: memoryview, start: int) -> None:
    """Give each want, sorted by offset in one pack, its bytes; `data` begins at `start` of it."""
    for run, first, stop in _runs(wants):
        piece = data[first - start : stop - start]
        to = run[0].to
        if isinstance(to, torch.Tensor):
            _fill([want.to for want in run], to.dtype, piece)  # type: ignore[misc]
        else:
            to(piece)


def _runs(wants: Sequence[Want]) -> Iterator[tuple[Sequence[Want], int, int]]:
    """Wants that can be given at once, with the place of their bytes."""
    first, number, end, kind = 0, 0, -1, None
    for number, (chunk, _, to) in enumerate(wants):
        dtype = to.dtype if isinstance(to, torch.Tensor) else None
        if number and (dtype is None or dtype is not kind or chunk.offset != end):
            yield wants[first:number], wants[first].chunk.offset, end
            first = number
        kind, end = dtype, chunk.offset + chunk.length
    if wants:
        yield wants[first:], wants[first].chunk.offset, end


def _fill(targets: list[torch.Tensor], dtype: torch.dtype, data: memoryview) -> None:
    with torch.no_grad():
        flat = _tensor_over(data)
        if flat.data_ptr() % dtype.itemsize:
            flat = flat.clone()
        pieces = _unflatten_dense_tensors(flat.view(dtype), targets)  # type: ignore[no-untyped-call]
        torch._foreach_copy_(targets, pieces)


def _tensor_over(data: memoryview) -> torch.Tensor:
    """The bytes as a tensor that is only read, and not longer than `data` lives.

    torch warns of memory that it may not write to, and stored bytes are such.
    """
    address = np.frombuffer(data, dtype=np.uint8).ctypes.data
    borrowed = (ctypes.c_uint8 * len(data)).from_address(address)
    return torch.frombuffer(borrowed, dtype=torch.uint8)
