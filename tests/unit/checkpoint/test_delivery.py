"""Bytes of a pack into tensors and calls: runs, gaps, odd places, bytes that came damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rayburst.checkpoint.chunks import Chunk, digest_of
from rayburst.checkpoint.delivery import Want, deliver
from rayburst.checkpoint.fetch import fetch
from rayburst.checkpoint.store import ObjectStore
from rayburst.errors import CheckpointDamagedError

DIGEST = digest_of("xxh3-128")


def packed(tensors: list[torch.Tensor], gap: int = 0) -> tuple[bytes, list[Chunk]]:
    """The tensors' bytes end to end, with `gap` bytes between, and where they lie."""
    data, chunks = b"", []
    for tensor in tensors:
        piece = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
        chunks.append(Chunk(DIGEST(piece), "packs/s/0-00000", len(data), len(piece)))
        data += piece + b"?" * gap
    return data, chunks


TENSORS = [
    torch.arange(6.0).reshape(2, 3),
    torch.tensor([1, 2, 3], dtype=torch.uint8),
    torch.arange(4.0) + 10,  # begins at an odd byte
    torch.arange(4.0).reshape(2, 2, 1) + 20,
    torch.tensor(7.5),
    torch.tensor([True, False]),
    torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    torch.arange(3, dtype=torch.int64),
]


@pytest.mark.parametrize("gap", [0, 1, 64])
@pytest.mark.parametrize("start", [0, 1, 24])
def test_each_gets_its_own(gap: int, start: int) -> None:
    data, chunks = packed(TENSORS, gap)
    into = [torch.zeros_like(tensor) for tensor in TENSORS]
    twin, heard = torch.zeros_like(TENSORS[3]), list[bytes]()
    wants = [Want(c, "x", t) for c, t in zip(chunks, into, strict=True)]
    wants.insert(4, Want(chunks[3], "twin", twin))
    wants.append(Want(chunks[-1], "call", lambda piece: heard.append(bytes(piece))))
    wants = [want for want in wants if want.chunk.offset >= start]
    deliver(wants, memoryview(data)[start:], start)
    for chunk, tensor, got in zip(chunks, TENSORS, into, strict=True):
        assert torch.equal(got, tensor if chunk.offset >= start else torch.zeros_like(tensor))
    assert torch.equal(twin, TENSORS[3])
    assert heard == [data[chunks[-1].offset : chunks[-1].offset + chunks[-1].length]]


def test_a_parameter_that_learns_is_filled() -> None:
    data, chunks = packed([torch.arange(4.0)])
    weight = torch.nn.Parameter(torch.zeros(4))
    deliver([Want(chunks[0], "w", weight)], memoryview(data), 0)
    assert torch.equal(weight.detach(), torch.arange(4.0))
    assert weight.grad_fn is None


def test_what_came_damaged_once_is_asked_for_again_alone(tmp_path: Path) -> None:
    data, chunks = packed(TENSORS)
    store = ObjectStore.open(tmp_path)
    store.put("packs/s/0-00000", data)
    plain: Any = store.get_range_buffer
    asked: list[tuple[int, int]] = []

    def lying(key: str, start: int, length: int) -> memoryview:
        asked.append((start, length))
        found = bytearray(plain(key, start, length))
        if len(asked) == 1:
            found[chunks[3].offset] ^= 1
        return memoryview(bytes(found))

    store.get_range_buffer = lying  # type: ignore[method-assign]
    into = [torch.zeros_like(tensor) for tensor in TENSORS]
    wants = [Want(c, f"t{i}", t) for i, (c, t) in enumerate(zip(chunks, into, strict=True))]
    wants.insert(4, Want(chunks[3], "twin", torch.zeros_like(TENSORS[3])))
    fetch(store, DIGEST, wants)
    assert asked == [(0, len(data)), (chunks[3].offset, chunks[3].length)]
    assert all(torch.equal(a, b) for a, b in zip(into, TENSORS, strict=True))
    store.put("packs/s/0-00000", data[:-1] + b"!")
    with pytest.raises(CheckpointDamagedError, match=r"packs/s/0-00000: .* \(t7\)"):
        fetch(store, DIGEST, wants)
