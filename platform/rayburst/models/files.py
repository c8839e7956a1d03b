"""Weights of variants as safetensors files that are named by their own SHA-256.

    files = put_tensors(folder, tensors, metadata)      # weights/<sha256>.safetensors
    tensors, metadata = get_tensors(folder, files)

`folder` is the model's place on the store. The same weights are stored once, however often they
are published. What is read is proven; VersionDamagedError names the file that is not as written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rayburst.checkpoint.store import ObjectStore
from rayburst.errors import ObjectExistsError, ObjectNotFoundError, VersionDamagedError
from rayburst.models.manifest import StoredFile, file_digest

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["WEIGHTS", "get_tensors", "prove", "put_tensors"]

WEIGHTS = "weights"
SHARD_BYTES = 4_000_000_000
"""One PUT of S3 takes 5 GB."""


def put_tensors(
    folder: ObjectStore,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    *,
    shard_bytes: int = SHARD_BYTES,
) -> tuple[StoredFile, ...]:
    """Store the tensors in files of about `shard_bytes`; each carries all of `metadata`."""
    from safetensors.torch import save

    from rayburst.train.weights import parts

    stored = []
    for names in parts(tensors, shard_bytes):
        plain = {name: tensors[name].detach().cpu().contiguous() for name in names}
        stored.append(_put(folder, _canonical(save(plain, metadata=dict(metadata)))))
    return tuple(stored)


def get_tensors(
    folder: ObjectStore, files: Sequence[StoredFile]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What `put_tensors` stored, proven."""
    from safetensors.torch import load

    tensors: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    for file in files:
        data = prove(folder, file)
        tensors |= load(data)
        metadata |= _head(data)[0].get("__metadata__", {})
    return tensors, metadata


def prove(folder: ObjectStore, file: StoredFile) -> bytes:
    """The bytes of a file, which are those that were published."""
    try:
        data = folder.get(file.key)
    except ObjectNotFoundError:
        raise VersionDamagedError(f"{folder.uri}/{file.key} is missing") from None
    if file_digest(data) != file.sha256:
        raise VersionDamagedError(f"{folder.uri}/{file.key} holds other bytes than were published")
    return data


def _head(data: bytes) -> tuple[dict[str, Any], int]:
    """The JSON that a safetensors file begins with, and where the tensors' bytes begin."""
    end = 8 + int.from_bytes(data[:8], "little")
    head: dict[str, Any] = json.loads(data[8:end])
    return head, end


def _canonical(data: bytes) -> bytes:
    """The same file with its head in order: safetensors writes the metadata in any."""
    head, end = _head(data)
    text = json.dumps(head, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[end:]


def _put(folder: ObjectStore, data: bytes) -> StoredFile:
    sha256 = file_digest(data)
    file = StoredFile(key=f"{WEIGHTS}/{sha256}.safetensors", sha256=sha256, size_bytes=len(data))
    try:
        folder.put(file.key, data, if_absent=True)
    except ObjectExistsError:
        try:
            prove(folder, file)
        except VersionDamagedError:
            folder.put(file.key, data)  # its name says what belongs there
    return file
