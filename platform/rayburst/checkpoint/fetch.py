"""Reads chunks: few ranged GETs, several at once, every chunk proven before it is used.

Neighbouring chunks of a pack come in one request of up to 8 MiB. A chunk whose digest differs is
fetched once more, alone (the wire can lie too); if it differs again the load is refused with the
name of the object. Deliberately knows no tensors: bytes go where `Want.deliver` puts them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple

from rayburst.checkpoint.chunks import Chunk, Digest
from rayburst.checkpoint.store import ObjectStore
from rayburst.errors import CheckpointDamagedError, ObjectNotFoundError

__all__ = ["Want", "fetch"]

RANGE_BYTES = 8 * 1024 * 1024
GAP_BYTES = 128 * 1024
READERS = 6
Deliver = Callable[[memoryview], None]


class Want(NamedTuple):
    """A chunk, the tensor it belongs to (for messages), and what to do with its bytes."""

    chunk: Chunk
    name: str
    deliver: Deliver


def fetch(store: ObjectStore, digest: Digest, wants: Iterable[Want]) -> None:
    """Read, prove and deliver every chunk. `deliver` is called from several threads.

    CheckpointDamagedError names the object, the tensor and what is wrong.
    """
    ranges = list(_ranges(wants))
    if len(ranges) == 1:
        _read(store, digest, ranges[0])
        return
    with ThreadPoolExecutor(READERS, thread_name_prefix="rayburst-read") as pool:
        todo = iter(ranges)
        running = [pool.submit(_read, store, digest, r) for r in islice(todo, READERS)]
        try:
            for position, following in enumerate(todo):
                running[position].result()
                running.append(pool.submit(_read, store, digest, following))
            for job in running:
                job.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _ranges(wants: Iterable[Want]) -> Iterator[list[Want]]:
    by_pack: dict[str, list[Want]] = {}
    for want in wants:
        by_pack.setdefault(want.chunk.pack, []).append(want)
    for pack_wants in by_pack.values():
        pack_wants.sort(key=lambda want: want.chunk.offset)
        part: list[Want] = []
        for want in pack_wants:
            if part and not _joins(part, want.chunk):
                yield part
                part = []
            part.append(want)
        yield part


def _joins(part: list[Want], chunk: Chunk) -> bool:
    first, last = part[0].chunk, part[-1].chunk
    return (
        chunk.offset - (last.offset + last.length) <= GAP_BYTES
        and chunk.offset + chunk.length - first.offset <= RANGE_BYTES
    )


def _read(store: ObjectStore, digest: Digest, part: list[Want]) -> None:
    for want, piece in proven(store, digest, part):
        want.deliver(piece)


def proven(
    store: ObjectStore, digest: Digest, part: list[Want]
) -> Iterator[tuple[Want, memoryview]]:
    """Read chunks of one pack, sorted by offset, in one request; give each when it is proven."""
    start = part[0].chunk.offset
    stop = max(want.chunk.offset + want.chunk.length for want in part)
    data = _get(store, part[0], start, stop - start)
    for want in part:
        wanted, _, offset, length = want.chunk
        piece = data[offset - start : offset - start + length]
        if len(piece) != length or digest(piece) != wanted:
            piece = _again(store, digest, want)
        yield want, piece


def _again(store: ObjectStore, digest: Digest, want: Want) -> memoryview:
    chunk = want.chunk
    store.distrust(chunk.pack)
    piece = _get(store, want, chunk.offset, chunk.length)
    if len(piece) != chunk.length:
        raise CheckpointDamagedError(
            f"{store.uri}/{chunk.pack}: cut short; {want.name} needs bytes {chunk.offset} to "
            f"{chunk.offset + chunk.length}"
        )
    if digest(piece) != chunk.digest:
        raise CheckpointDamagedError(
            f"{store.uri}/{chunk.pack}: bytes {chunk.offset} to {chunk.offset + chunk.length} "
            f"({want.name}) are not what was saved: their digest differs"
        )
    return piece


def _get(store: ObjectStore, want: Want, start: int, length: int) -> memoryview:
    try:
        return store.get_range_buffer(want.chunk.pack, start, length)
    except ObjectNotFoundError:
        raise CheckpointDamagedError(
            f"{store.uri}/{want.chunk.pack}: missing; {want.name} needs it"
        ) from None
