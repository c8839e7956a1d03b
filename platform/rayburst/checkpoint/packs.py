"""Writes one rank's chunks: reuses what the parent has, packs the rest, uploads while hashing.

Chunks are laid end to end into packs of about 8 MiB, because stores take few large objects much
faster than many small ones. A pack is written from where the bytes already lie: nothing is joined
or copied. A broken upload repeats one pack, so a save resumes where it was.

Hashing runs ahead of the uploads: packs that wait hold no memory of their own. A peer before the
store (peers.py) hears of every pack on a thread of its own, so that neither waits for the other.

The caller keeps every buffer unchanged until `close` returns.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from rayburst.checkpoint.chunks import Chunk, Digest, cut
from rayburst.checkpoint.progress import Progress
from rayburst.checkpoint.protocol import Reached, SaveStep, pack_key
from rayburst.checkpoint.store import ObjectStore
from rayburst.errors import CheckpointAbandonedError

__all__ = ["ChunkIndex", "PackWriter"]

PACK_BYTES = 8 * 1024 * 1024
UPLOADS = 4
ChunkIndex = Mapping[tuple[str, int], Chunk]


class PackWriter:
    """Chunks of one rank and one save into packs.

    writer = PackWriter(store, save, rank, parent, digest, progress, cancelled, reached)
    chunks = writer.add(view, chunk_bytes)     # for every tensor
    writer.place()                             # every chunk has its place
    writer.finish()                            # raises what an upload raised
    writer.close()
    """

    def __init__(
        self,
        store: ObjectStore,
        save: str,
        rank: int,
        parent: ChunkIndex,
        digest: Digest,
        progress: Progress,
        cancelled: threading.Event,
        reached: Reached,
    ) -> None:
        self._store = store
        self._save = save
        self._rank = rank
        self._known: dict[tuple[str, int], Chunk] = {}
        self._parent = parent
        self._digest = digest
        self._progress = progress
        self._cancelled = cancelled
        self._reached = reached
        self._parts: list[memoryview] = []
        self._part: tuple[memoryview, int, int] | None = None
        self._filled = 0
        self._reused = 0  # not yet told to `progress`
        self._number = 0
        self._key = pack_key(save, rank, 0)
        self._pool = ThreadPoolExecutor(UPLOADS, thread_name_prefix="rayburst-upload")
        self._peer = ThreadPoolExecutor(1, thread_name_prefix="rayburst-peer")
        self._pending: list[Future[None]] = []
        self._refused = threading.Event()

    def add(
        self, buffer: memoryview, chunk_bytes: int, start: int = 0, length: int | None = None
    ) -> tuple[Chunk, ...]:
        """Chunks of `length` bytes of `buffer` from `start`, written or found."""
        size = len(buffer) - start if length is None else length
        if 0 < size <= chunk_bytes:
            return (self._chunk(buffer, start, size),)
        return tuple([self._chunk(buffer, start + at, n) for at, n in cut(size, chunk_bytes)])

    def _chunk(self, buffer: memoryview, start: int, length: int) -> Chunk:
        stop = start + length
        digest = self._digest(buffer[start:stop])
        key = (digest, length)
        chunk = self._known.get(key)
        if chunk is not None:
            return chunk
        chunk = self._parent.get(key)
        if chunk is None:
            if self._filled and self._filled + length > PACK_BYTES:
                self._flush()
            chunk = Chunk(digest, self._key, self._filled, length)
            part = self._part
            if part is not None and part[0] is buffer and part[2] == start:
                self._part = (buffer, part[1], stop)
            else:
                self._close_part()
                self._part = (buffer, start, stop)
            self._filled += length
        else:
            self._reused += length
        self._known[key] = chunk
        return chunk

    def _close_part(self) -> None:
        if self._part is not None:
            buffer, start, stop = self._part
            self._parts.append(buffer[start:stop])
            self._part = None

    def _flush(self) -> None:
        self._close_part()
        self._progress.reused(self._reused)
        self._progress.planned(self._filled)
        self._reused = 0
        if not self._parts:
            return
        if self._cancelled.is_set():
            raise CheckpointAbandonedError(f"save {self._save} was called off while uploading")
        key, parts, size = self._key, self._parts, self._filled
        self._pending.append(self._pool.submit(self._upload, key, parts, size))
        self._peer.submit(self._store.announce, key, parts)
        self._parts, self._filled = [], 0
        self._number += 1
        self._key = pack_key(self._save, self._rank, self._number)
        if self._refused.is_set():
            self.finish()  # the store does not take it: hash no further

    def _upload(self, key: str, parts: list[memoryview], size: int) -> None:
        if self._cancelled.is_set():
            raise CheckpointAbandonedError(f"save {self._save} was called off while uploading")
        try:
            with self._progress.sending(size):
                self._store.put(key, parts[0] if len(parts) == 1 else parts)
        except BaseException:
            self._refused.set()
            raise
        self._reached(SaveStep.FIRST_PACK)

    def place(self) -> None:
        """Send the last pack on its way."""
        self._flush()

    def finish(self) -> None:
        """Wait until every pack is on the store."""
        for upload in self._pending:
            upload.result()
        self._pending = []

    def close(self) -> None:
        """Give the threads back; what waits is dropped, and a peer fetches it when it must."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._peer.shutdown(wait=True, cancel_futures=True)

    @property
    def index(self) -> ChunkIndex:
        """Every chunk that this save wrote or found, for the next one."""
        return self._known
