"""Chunks: how bytes are cut, and the digest that proves each piece.

A chunk is the unit of proof and of reuse: 256 KiB to 4 MiB of one tensor's bytes, or all of a
smaller tensor. The cut depends on nothing but the number of bytes, so the same tensor is cut the
same way at every step and an unchanged chunk is found again by its digest.

The digest is XXH3-128. Measured on 4 MiB pieces, one core: xxh3-128 8.7 GB/s, blake3 1.4,
sha256 1.2, blake2b 0.5. A checkpoint is hashed whole at every save beside the training process
and at every load, so this is what it costs. It finds every accident (2**-128); it is no defence
against someone who may write to the bucket, but neither would be an unkeyed cryptographic hash:
that person can replace the manifest too. `sha256` can be chosen where a rule asks for it.

Deliberately knows no tensors and no store.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec
import xxhash

from rayburst.errors import CheckpointError

__all__ = ["DIGESTS", "Chunk", "Digest", "chunk_bytes_for", "cut", "digest_of"]

Buffer = bytes | memoryview
Digest = Callable[[Buffer], str]

KIB = 1024
SMALLEST_BYTES = 256 * KIB
LARGEST_BYTES = 4 * KIB * KIB
_PIECES = 256


if TYPE_CHECKING:
    PackKey = str
else:
    PackKey = str | int  # a stored manifest writes its position in a list; see manifest.py


class Chunk(msgspec.Struct, frozen=True, order=True, array_like=True, gc=False):
    """Where proven bytes lie: `length` bytes at `offset` of the object `pack`."""

    digest: str
    pack: PackKey
    offset: int
    length: int


def _sha256(data: Buffer) -> str:
    return hashlib.sha256(data).hexdigest()


DIGESTS: dict[str, Digest] = {"xxh3-128": xxhash.xxh3_128_hexdigest, "sha256": _sha256}


def digest_of(algorithm: str) -> Digest:
    """The function bytes -> hex digest of this name. CheckpointError for an unknown one."""
    try:
        return DIGESTS[algorithm]
    except KeyError:
        raise CheckpointError(
            f"digest {algorithm!r} is not known here. Known: {', '.join(sorted(DIGESTS))}"
        ) from None


def chunk_bytes_for(size_bytes: int) -> int:
    """Chunk size for a run of bytes: about 256 pieces, a power of two within the bounds."""
    wanted = max(1, size_bytes // _PIECES)
    return min(LARGEST_BYTES, max(SMALLEST_BYTES, 1 << (wanted - 1).bit_length()))


def cut(size_bytes: int, chunk_bytes: int) -> list[tuple[int, int]]:
    """(start, length) of every chunk; the last may be shorter; none for no bytes."""
    return [
        (start, min(chunk_bytes, size_bytes - start)) for start in range(0, size_bytes, chunk_bytes)
    ]
