"""Read once for a machine: ranks on one host share the chunks that several of them need.

    node = NodeReaders(group)                    # collective, once
    node.read(store, digest, manifest, wants)    # collective; wants differ from rank to rank

Every rank says in a bitmap which chunks of the manifest it needs. A chunk that one rank needs it
reads for itself. One that several need is read and proven by one of them and passed on through
shared memory: a ring of small slots that is reused, so that a load of any size takes 24 MiB a rank.
Round by round every rank reads the next ranges while it copies the last ones into place.

A rank that cannot read stops the round for all; the caller learns why. Where the machine has no
room for the ring, every rank reads for itself and a warning says so.
"""

from __future__ import annotations

import logging
import mmap
import os
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from rayburst.checkpoint.chunks import LARGEST_BYTES, Chunk, Digest
from rayburst.checkpoint.fetch import Want, fetch, proven
from rayburst.checkpoint.group import Group
from rayburst.checkpoint.manifest import Manifest
from rayburst.checkpoint.store import ObjectStore

__all__ = ["NodeReaders", "deal_reads"]

SLOT_BYTES = LARGEST_BYTES  # a whole chunk fits
BATCH = 2  # slots that a rank fills in a round
ROUNDS_HELD = 3  # one being copied, one ready, one being read
_MEMORY = Path("/dev/shm")
_log = logging.getLogger(__name__)
Range = list[Chunk]


def deal_reads(chunks: Sequence[Chunk], wanted: np.ndarray) -> list[list[Range]]:
    """PURE: for every rank the ranges that it reads for all who want them.

    `wanted[rank, i]`: whether the rank wants `chunks[i]`. A range is a run of neighbours in one
    pack, wanted by the same ranks, of at most SLOT_BYTES; it goes to the one of those ranks that
    has the fewest bytes to read so far. Chunks that only one rank wants are left out.
    """
    shared = np.flatnonzero(wanted.sum(axis=0) > 1)
    order = sorted(shared.tolist(), key=lambda i: (chunks[i].pack, chunks[i].offset))
    columns = np.packbits(wanted, axis=0).T
    wanters = {i: columns[i].tobytes() for i in order}
    dealt: list[list[Range]] = [[] for _ in range(len(wanted))]
    load = [0] * len(wanted)
    for part in _runs(chunks, order, wanters):
        ranks = np.flatnonzero(wanted[:, part[0]]).tolist()
        rank = min(ranks, key=load.__getitem__)
        dealt[rank].append([chunks[i] for i in part])
        load[rank] += sum(chunks[i].length for i in part)
    return dealt


def _runs(
    chunks: Sequence[Chunk], order: list[int], wanters: dict[int, bytes]
) -> Iterator[list[int]]:
    part: list[int] = []
    for i in order:
        if part:
            first, last, chunk = chunks[part[0]], chunks[part[-1]], chunks[i]
            joins = (
                chunk.pack == last.pack
                and chunk.offset == last.offset + last.length
                and chunk.offset + chunk.length - first.offset <= SLOT_BYTES
                and wanters[i] == wanters[part[0]]
            )
            if not joins:
                yield part
                part = []
        part.append(i)
    if part:
        yield part


class NodeReaders:
    """The ranks of this machine that load together."""

    def __init__(self, group: Group) -> None:
        """Collective over all ranks of `group`."""
        self._group = group.split(_machine(group.rank)) if group.world > 1 else group

    def close(self) -> None:
        """Leave the group of the machine."""
        self._group.close()

    def read(
        self, store: ObjectStore, digest: Digest, manifest: Manifest, wants: list[Want]
    ) -> None:
        """Read, prove and deliver what this rank wants. Collective over the machine.

        CheckpointDamagedError on the rank that read the damage; the others return without all of
        their bytes, so the caller must spread the error before anything is used.
        """
        if self._group.world == 1:
            fetch(store, digest, wants)
            return
        chunks = list({(c.pack, c.offset): c for _, c in manifest.chunks()}.values())
        mine: dict[tuple[str, int], list[Want]] = {}
        for want in wants:
            mine.setdefault((want.chunk.pack, want.chunk.offset), []).append(want)
        bits = np.fromiter(
            ((c.pack, c.offset) in mine and c.length <= SLOT_BYTES for c in chunks),
            dtype=np.uint8,
            count=len(chunks),
        )
        wanted = self._group.rows(torch.from_numpy(bits)).numpy().astype(bool)
        dealt = deal_reads(chunks, wanted)
        rounds = -(-max(map(len, dealt)) // BATCH)
        ring = Ring.open(self._group) if rounds else None
        taken = {(c.pack, c.offset) for part in dealt for r in part for c in r} if ring else set()
        error: BaseException | None = None
        try:
            fetch(store, digest, [w for w in wants if (w.chunk.pack, w.chunk.offset) not in taken])
        except Exception as caught:  # noqa: BLE001 - the others wait in the first round
            error = caught
        if ring is not None:
            with ring:
                error = self._rounds(store, digest, dealt, mine, ring, rounds, error)
        if error is not None:
            raise error

    def _rounds(
        self,
        store: ObjectStore,
        digest: Digest,
        dealt: list[list[Range]],
        mine: dict[tuple[str, int], list[Want]],
        ring: Ring,
        rounds: int,
        error: BaseException | None,
    ) -> BaseException | None:
        """All rounds; the error that stopped this rank, or None."""
        me = self._group.rank

        def start(number: int) -> list[Future[None]]:
            batch = dealt[me][number * BATCH : (number + 1) * BATCH]
            return [
                pool.submit(_fill, store, digest, [mine[c.pack, c.offset][0] for c in part], slot)
                for part, slot in zip(batch, ring.slots(me, number), strict=False)
            ]

        with ThreadPoolExecutor(2 * BATCH, thread_name_prefix="rayburst-read") as pool:
            ahead = start(0)
            for number in range(rounds):
                # its slots were last copied from two rounds ago, and all ranks are past that
                following = start(number + 1)
                failed = [e for job in ahead if (e := job.exception()) is not None]
                error = error or (failed[0] if failed else None)
                if not self._group.everyone(error is None):
                    break
                try:
                    _deliver(dealt, mine, ring, number)
                except Exception as caught:  # noqa: BLE001 - told to all in the next round
                    error = caught
                ahead = following
        return error


def _fill(store: ObjectStore, digest: Digest, part: list[Want], slot: memoryview) -> None:
    first = part[0].chunk.offset
    for want, piece in proven(store, digest, part):
        at = want.chunk.offset - first
        slot[at : at + len(piece)] = piece


def _deliver(
    dealt: list[list[Range]], mine: dict[tuple[str, int], list[Want]], ring: Ring, number: int
) -> None:
    for rank, ranges in enumerate(dealt):
        batch = ranges[number * BATCH : (number + 1) * BATCH]
        for part, slot in zip(batch, ring.slots(rank, number), strict=False):
            first = part[0].offset
            for chunk in part:
                at = chunk.offset - first
                for want in mine.get((chunk.pack, chunk.offset), ()):
                    want.deliver(slot[at : at + chunk.length])


class Ring:
    """Slots in memory that all ranks of a machine see; gone from its name when all have it."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory
        self._view = memoryview(memory)

    @classmethod
    def open(cls, group: Group) -> Ring | None:
        """Collective. None where the machine cannot give the memory; all ranks agree."""
        size = group.world * ROUNDS_HELD * BATCH * SLOT_BYTES
        name, why = group.tell(_create(size) if group.rank == 0 else ("", ""))
        memory = _map(name, size) if name else None
        everyone = group.everyone(memory is not None)
        if group.rank == 0 and name:
            Path(name).unlink()
        if everyone and memory is not None:
            return cls(memory)
        if memory is not None:
            memory.close()
        if group.rank == 0:
            _log.warning(
                "every rank reads the checkpoint for itself, which is slower: no %d MiB of shared "
                "memory in %s (%s)",
                size >> 20,
                _MEMORY,
                why or "not every rank could open it",
            )
        return None

    def slots(self, rank: int, number: int) -> list[memoryview]:
        """The slots of a rank in a round."""
        first = (rank * ROUNDS_HELD + number % ROUNDS_HELD) * BATCH
        return [
            self._view[(first + i) * SLOT_BYTES : (first + i + 1) * SLOT_BYTES]
            for i in range(BATCH)
        ]

    def __enter__(self) -> Ring:
        return self

    def __exit__(self, *_: object) -> None:
        # slices of the view may still live in a frame of an error; their end frees the memory
        del self._view
        del self._memory


def _create(size: int) -> tuple[str, str]:
    """(path of a file of reserved memory, "") or ("", why there is none)."""
    try:
        handle, name = tempfile.mkstemp(prefix="rayburst-load-", dir=_MEMORY)
    except OSError as error:
        return "", str(error)
    try:
        os.posix_fallocate(handle, 0, size)
    except OSError as error:
        Path(name).unlink()
        return "", str(error)
    finally:
        os.close(handle)
    return name, ""


def _map(name: str, size: int) -> mmap.mmap | None:
    try:
        with Path(name).open("r+b") as file:
            return mmap.mmap(file.fileno(), size)
    except OSError:
        return None


def _machine(rank: int) -> str:
    """The same text for ranks that see the same memory; one of its own where that is unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}:{_MEMORY.stat().st_dev}:{os.getuid()}"
    except OSError:
        return f"rank {rank}"
