"""Reads chunks: few ranged GETs, several at once, every chunk proven before it is used.

Neighbouring chunks of a pack come in one request of up to 8 MiB. A chunk whose digest differs is
fetched once more, alone (the wire can lie too); if it differs again the load is refused with the
name of the object. Deliberately knows no tensors: bytes go where `Want.to` says.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from rayburst.checkpoint.chunks import Digest
from rayburst.checkpoint.delivery import Want, deliver
from rayburst.checkpoint.store import ObjectStore
from rayburst.errors import CheckpointDamagedError, ObjectNotFoundError

__all__ = ["Want", "fetch", "proven"]

RANGE_BYTES = 8 * 1024 * 1024
GAP_BYTES = 128 * 1024
READERS = 6


def fetch(store: ObjectStore, digest: Digest, wants: Iterable[Want]) -> None:
    """Read, prove and deliver every chunk, from several threads.

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
        first = stop = at = 0
        for number, (chunk, _, _) in enumerate(pack_wants):
            end = chunk.offset + chunk.length
            if number and (chunk.offset - stop > GAP_BYTES or end - first > RANGE_BYTES):
                yield pack_wants[at:number]
                at = number
            if at == number:
                first = chunk.offset
            stop = end
        yield pack_wants[at:]


def _read(store: ObjectStore, digest: Digest, part: list[Want]) -> None:
    start = part[0].chunk.offset
    data, repaired = proven(store, digest, part)
    for number, piece in repaired.items():
        deliver(part[number : number + 1], piece, part[number].chunk.offset)
    if repaired:
        part = [want for number, want in enumerate(part) if number not in repaired]
    deliver(part, data, start)


def proven(
    store: ObjectStore, digest: Digest, part: Sequence[Want]
) -> tuple[memoryview, dict[int, memoryview]]:
    """Read chunks of one pack, sorted by offset, in one request, and prove each.

    Returns the bytes from the first chunk on, and by position the chunks that came damaged there
    and whole when they were asked for again.
    """
    start = part[0].chunk.offset
    stop = max([want.chunk.offset + want.chunk.length for want in part])
    data = _get(store, part[0], start, stop - start)
    repaired: dict[int, memoryview] = {}
    before = None
    for number, (chunk, _, _) in enumerate(part):
        if chunk == before:  # wanted twice
            if number - 1 in repaired:
                repaired[number] = repaired[number - 1]
            continue
        before, at = chunk, chunk.offset - start
        piece = data[at : at + chunk.length]
        if len(piece) != chunk.length or digest(piece) != chunk.digest:
            repaired[number] = _again(store, digest, part[number])
    return data, repaired


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
