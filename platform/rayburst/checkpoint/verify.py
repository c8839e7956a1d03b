"""Proof of a stored checkpoint without loading it: every chunk is read and its digest compared.

Unlike a load it goes on after the first damage, so that it can list all of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rayburst.checkpoint.catalog import read_manifest
from rayburst.checkpoint.chunks import digest_of
from rayburst.checkpoint.fetch import Want, fetch
from rayburst.checkpoint.store import ObjectStore
from rayburst.errors import CheckpointDamagedError, CheckpointNotFoundError

__all__ = ["Verified", "verify"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Verified:
    """What was proven: chunks and bytes, and an error for every damaged pack."""

    step: int
    chunks: int
    read_bytes: int
    errors: tuple[str, ...]

    @property
    def whole(self) -> bool:
        """Whether everything is as it was saved."""
        return not self.errors


def verify(
    store: ObjectStore, step: int, on_pack: Callable[[int, int], None] = lambda done, of: None
) -> Verified:
    """Read and prove every chunk of a step. `on_pack` hears (packs done, packs in all)."""
    try:
        manifest = read_manifest(store, step)
    except (CheckpointDamagedError, CheckpointNotFoundError) as error:
        return Verified(step=step, chunks=0, read_bytes=0, errors=(str(error),))
    wanted: dict[str, dict[int, Want]] = {}
    for name, chunk in manifest.chunks():
        wanted.setdefault(chunk.pack, {})[chunk.offset] = Want(chunk, name, _drop)
    errors, chunks, size = [], 0, 0
    for number, pack in enumerate(sorted(wanted), start=1):
        wants = wanted[pack].values()
        try:
            fetch(store, digest_of(manifest.digest), wants)
        except CheckpointDamagedError as error:
            errors.append(str(error))
        chunks += len(wants)
        size += sum(want.chunk.length for want in wants)
        on_pack(number, len(wanted))
    return Verified(step=step, chunks=chunks, read_bytes=size, errors=tuple(errors))


def _drop(_data: memoryview) -> None:
    """Proven and not needed."""
