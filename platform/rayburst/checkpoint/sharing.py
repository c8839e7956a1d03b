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
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from rayburst.checkpoint.chunks import LARGEST_BYTES, Chunk, Digest
from rayburst.checkpoint.delivery import Want, deliver
from rayburst.checkpoint.fetch import GAP_BYTES, fetch, proven
from rayburst.checkpoint.group import Group
from rayburst.checkpoint.manifest import Manifest
from rayburst.checkpoint.store import ObjectStore

__all__ = ["NodeReaders", "Places", "deal_reads"]

SLOT_BYTES = LARGEST_BYTES  # a whole chunk fits
BATCH = 2  # slots that a rank fills in a round
ROUNDS_HELD = 3  # one being copied, one ready, one being read
_MEMORY = Path("/dev/shm")
_log = logging.getLogger(__name__)
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Range = tuple[int, int]  # of places: first, and one past the last


class Places:
    """Where the chunks of a manifest lie, each place once, by pack and offset.

    `pack` (its number), `offset` and `length` of every place; `of` gives the place of each chunk.
    The same on every rank that has the same manifest.
    """

    def __init__(self, chunks: Sequence[Chunk]) -> None:
        numbers = {pack: i for i, pack in enumerate(dict.fromkeys([c.pack for c in chunks]))}
        pack = [numbers[c.pack] for c in chunks]
        offset, length = [c.offset for c in chunks], [c.length for c in chunks]
        table = np.array([pack, offset, length], dtype=np.int64)
        order = np.lexsort(table[::-1])
        rows = table.T[order]
        fresh = np.ones(len(rows), dtype=bool)
        fresh[1:] = (rows[1:] != rows[:-1]).any(axis=1)
        for i in np.flatnonzero(~fresh):
            # equal places with different digests: one of them is wrong, and must be found so
            fresh[i] = chunks[order[i]].digest != chunks[order[i - 1]].digest
        place = np.empty(len(rows), dtype=np.int64)
        place[order] = np.cumsum(fresh) - 1
        self.pack, self.offset, self.length = rows[fresh].T
        self._of = dict(zip(map(id, chunks), place.tolist(), strict=True))
        self._chunks = chunks  # they must live as long as their ids are used

    def of(self, wants: Sequence[Want]) -> Ints:
        """The place of each want's chunk, which is one of those that were given."""
        return np.array([self._of[id(chunk)] for chunk, _, _ in wants], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.pack)


def deal_reads(places: Places, wanted: Bools) -> list[list[Range]]:
    """PURE: for every rank the ranges that it reads for all who want them.

    `wanted[rank, i]`: whether the rank wants place `i`. A range is a run of neighbours in one
    pack, wanted by the same ranks, of at most SLOT_BYTES with the small gaps between them; it goes
    to the one of those ranks that has the fewest bytes to read so far. Places that only one rank
    wants are left out.
    """
    dealt: list[list[Range]] = [[] for _ in range(len(wanted))]
    if not len(places):
        return dealt
    stop = places.offset + places.length
    gap = places.offset[1:] - stop[:-1]
    joins = (places.pack[1:] == places.pack[:-1]) & (gap >= 0) & (gap <= GAP_BYTES)
    joins &= (wanted[:, 1:] == wanted[:, :-1]).all(axis=0)
    edges = [0, *(np.flatnonzero(~joins) + 1).tolist(), len(places)]
    shared = wanted.sum(axis=0) > 1
    load = [0] * len(wanted)
    for first, end in pairwise(edges):
        if not shared[first]:
            continue
        ranks = np.flatnonzero(wanted[:, first]).tolist()
        while first < end:
            limit = int(places.offset[first]) + SLOT_BYTES
            following = first + int(np.searchsorted(stop[first:end], limit, side="right"))
            rank = min(ranks, key=load.__getitem__)
            dealt[rank].append((first, following))
            load[rank] += int(places.length[first:following].sum())
            first = following
    return dealt


class _Wants:
    """One rank's wants by place."""

    def __init__(self, places: Places, wants: Sequence[Want]) -> None:
        at = places.of(wants)
        order = np.argsort(at, kind="stable")
        self.at: Ints = at[order]
        self.wants = [wants[i] for i in order.tolist()]

    def within(self, part: Range) -> list[Want]:
        """Those of a range of places, by offset; several may want the same place."""
        first, stop = np.searchsorted(self.at, part).tolist()
        return self.wants[first:stop]

    def outside(self, taken: Bools) -> list[Want]:
        """Those whose places are not `taken`."""
        return [w for w, is_taken in zip(self.wants, taken[self.at], strict=True) if not is_taken]


class NodeReaders:
    """The ranks of this machine that load together."""

    def __init__(self, group: Group) -> None:
        """Collective over all ranks of `group`."""
        self._group = group.split(_machine(group.rank)) if group.world > 1 else group
        self._room: Room | None = None

    def begin(self) -> None:
        """A load begins: the memory for it is reserved while the manifest is read."""
        if self._group.world > 1 and self._group.rank == 0:
            self._room = Room(self._group.world)

    def end(self) -> None:
        """The load ended, or failed before it read: give back what was reserved and not used."""
        if self._room is not None:
            self._room.close()
        self._room = None

    def close(self) -> None:
        """Leave the group of the machine."""
        self._group.close()

    def read(
        self, store: ObjectStore, digest: Digest, manifest: Manifest, wants: list[Want]
    ) -> None:
        """Read, prove and deliver what this rank wants. Collective over the machine.

        The wants' chunks are the manifest's own. CheckpointDamagedError on the rank that read the
        damage; the others return without all of their bytes, so the caller must spread the error
        before anything is used.
        """
        if self._group.world == 1:
            fetch(store, digest, wants)
            return
        places = Places([chunk for _, chunk in manifest.chunks()])
        mine = _Wants(places, wants)
        bits = np.zeros(len(places), dtype=np.uint8)
        bits[mine.at] = 1
        bits[places.length > SLOT_BYTES] = 0
        wanted = self._group.rows(torch.from_numpy(bits)).numpy().astype(bool)
        dealt = deal_reads(places, wanted)
        rounds = -(-max(map(len, dealt)) // BATCH)
        ring = Ring.open(self._group, self._room) if rounds else None
        self._room = None if rounds else self._room
        taken = np.zeros(len(places), dtype=bool)
        for first, stop in [part for ranges in dealt for part in ranges] if ring else []:
            taken[first:stop] = True
        error: BaseException | None = None
        try:
            fetch(store, digest, mine.outside(taken))
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
        mine: _Wants,
        ring: Ring,
        rounds: int,
        error: BaseException | None,
    ) -> BaseException | None:
        """All rounds; the error that stopped this rank, or None."""
        me = self._group.rank

        def start(number: int) -> list[Future[None]]:
            batch = dealt[me][number * BATCH : (number + 1) * BATCH]
            return [
                pool.submit(_read, store, digest, mine.within(part), slot)
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
                    _take(dealt, mine, ring, number)
                except Exception as caught:  # noqa: BLE001 - told to all in the next round
                    error = caught
                ahead = following
        return error


def _read(store: ObjectStore, digest: Digest, part: list[Want], slot: memoryview) -> None:
    """Fill a slot with proven bytes."""
    data, repaired = proven(store, digest, part)
    start = part[0].chunk.offset
    size = min(len(data), len(slot))
    slot[:size] = data[:size]
    for number, piece in repaired.items():
        at = part[number].chunk.offset - start
        slot[at : at + len(piece)] = piece


def _take(dealt: list[list[Range]], mine: _Wants, ring: Ring, number: int) -> None:
    """Deliver from the slots of a round what this rank wants."""
    for rank, ranges in enumerate(dealt):
        batch = ranges[number * BATCH : (number + 1) * BATCH]
        for part, slot in zip(batch, ring.slots(rank, number), strict=False):
            wants = mine.within(part)
            if wants:
                deliver(wants, slot, wants[0].chunk.offset)


class Ring:
    """Slots in memory that all ranks of a machine see; gone from its name when all have it."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory
        self._view = memoryview(memory)

    @classmethod
    def open(cls, group: Group, room: Room | None = None) -> Ring | None:
        """Collective. None where the machine cannot give the memory; all ranks agree.

        `room`: what rank 0 reserved; without it now.
        """
        size = _ring_bytes(group.world)
        if group.rank == 0 and room is None:
            room = Room(group.world)
        name, why = group.tell(room.take() if room is not None else ("", ""))
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


class Room:
    """Reserves a ring's memory on a thread of its own: the kernel takes a while to clear it."""

    def __init__(self, world: int) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rayburst-room")
        self._made = self._thread.submit(_create, _ring_bytes(world))
        self._thread.shutdown(wait=False)

    def take(self) -> tuple[str, str]:
        """(path of the file, "") or ("", why there is none). Who takes it unlinks it."""
        return self._made.result()

    def close(self) -> None:
        """Give it back untaken."""
        name, _ = self._made.result()
        if name:
            Path(name).unlink(missing_ok=True)


def _ring_bytes(world: int) -> int:
    return world * ROUNDS_HELD * BATCH * SLOT_BYTES


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
