"""From stored chunks to tensor memory: which chunks a box needs and where their bytes go.

Only rows (dimension 0) that are needed are read. A box whose rows are whole and whose target is
contiguous on the host receives its chunks in place; any other is put together in a buffer of
just those rows and copied when its last chunk has come.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator

import numpy as np
import torch

from rayburst.checkpoint.chunks import Chunk
from rayburst.checkpoint.delivery import Want, takes_whole
from rayburst.checkpoint.manifest import Shard, StoredObject
from rayburst.checkpoint.staging import memory_of

__all__ = ["box_wants", "object_wants"]

_SMALL = 65536


def box_wants(
    name: str, shard: Shard, target: torch.Tensor, start: tuple[int, ...], lengths: tuple[int, ...]
) -> Iterator[Want]:
    """Chunks that fill `target` with the box of `lengths` at `start` of a stored shard."""
    if math.prod(lengths) == 0:
        return
    contiguous = takes_whole(target)
    if contiguous and lengths == shard.shape and len(shard.chunks) == 1:
        yield Want(shard.chunks[0], name, target)
        return
    item = target.element_size()
    row_bytes = math.prod(shard.shape[1:]) * item
    first = start[0] * row_bytes if start else 0
    last = (start[0] + lengths[0]) * row_bytes if start else item
    chunks = list(_overlapping(shard, first, last))
    if lengths[1:] == shard.shape[1:] and contiguous:
        memory = memory_of(target.reshape(-1).view(torch.uint8))
        for chunk, at in chunks:
            yield Want(chunk, name, _Into(memory, at - first))
        return
    box = _Box(target, shard, start, lengths, last - first, len(chunks))
    for chunk, at in chunks:
        yield Want(chunk, name, box.receive(at - first))


def object_wants(name: str, stored: StoredObject, done: Callable[[bytes], None]) -> Iterator[Want]:
    """Chunks of a leaf that is no tensor; `done` gets all its bytes once."""
    parts: list[bytes | None] = [None] * len(stored.chunks)
    lock = threading.Lock()

    def receive(index: int) -> Callable[[memoryview], None]:
        def deliver(data: memoryview) -> None:
            with lock:
                parts[index] = bytes(data)
                if all(part is not None for part in parts):
                    done(b"".join(part for part in parts if part is not None))

        return deliver

    for index, chunk in enumerate(stored.chunks):
        yield Want(chunk, name, receive(index))


def _overlapping(shard: Shard, first: int, last: int) -> Iterator[tuple[Chunk, int]]:
    low = first // shard.chunk_bytes
    high = -(-last // shard.chunk_bytes)
    for number in range(low, min(high, len(shard.chunks))):
        yield shard.chunks[number], number * shard.chunk_bytes


class _Into:
    """Copies a chunk's bytes to `at` of a memory; what lies outside is cut off."""

    __slots__ = ("_at", "_memory")

    def __init__(self, memory: memoryview, at: int) -> None:
        self._memory = memory
        self._at = at

    def __call__(self, data: memoryview) -> None:
        at, size = self._at, len(self._memory)
        if at < 0:
            data, at = data[-at:], 0
        if at + len(data) > size:
            data = data[: size - at]
        if len(data) < _SMALL:
            self._memory[at : at + len(data)] = data
            return
        # numpy copies without the GIL
        target = np.frombuffer(self._memory, dtype=np.uint8, count=len(data), offset=at)
        np.copyto(target, np.frombuffer(data, dtype=np.uint8))


class _Box:
    """A box put together from chunks, then copied into its target."""

    def __init__(
        self,
        target: torch.Tensor,
        shard: Shard,
        start: tuple[int, ...],
        lengths: tuple[int, ...],
        size: int,
        missing: int,
    ) -> None:
        self._target = target
        self._rows = (lengths[0], *shard.shape[1:]) if lengths else ()
        self._inner = tuple(zip(start, lengths, strict=True))[1:]
        self._size = size
        self._missing = missing
        self._flat: torch.Tensor | None = None
        self._lock = threading.Lock()

    def receive(self, at: int) -> Callable[[memoryview], None]:
        """What to do with the chunk whose first byte is at `at` of the rows."""

        def deliver(data: memoryview) -> None:
            with self._lock:
                if self._flat is None:
                    self._flat = torch.empty(self._size, dtype=torch.uint8)
                memory = memory_of(self._flat)
            _Into(memory, at)(data)
            with self._lock:
                self._missing -= 1
                finished = self._missing == 0
            if finished:
                self._copy()

        return deliver

    def _copy(self) -> None:
        if self._flat is None:
            return
        rows = self._flat.view(self._target.dtype).view(self._rows)
        for dim, (start, extent) in enumerate(self._inner, start=1):
            rows = rows.narrow(dim, start, extent)
        self._target.copy_(rows.view(self._target.shape) if rows.dim() == 0 else rows)
        self._flat = None
