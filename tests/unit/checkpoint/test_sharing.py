"""Who reads what for whom on one machine, and what happens where memory cannot be shared."""

from __future__ import annotations

import logging
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayburst.checkpoint import sharing
from rayburst.checkpoint.chunks import Chunk
from rayburst.checkpoint.delivery import Want
from rayburst.checkpoint.fetch import GAP_BYTES
from rayburst.checkpoint.group import Group
from rayburst.checkpoint.sharing import SLOT_BYTES, Places, Ring, deal_reads

MIB = 1024 * 1024


@given(st.data(), st.integers(1, 5), st.integers(0, 60))
def test_what_several_want_is_read_once_by_one_of_them(
    data: st.DataObject, ranks: int, count: int
) -> None:
    chunks, offset = [], 0
    for number in range(count):
        length = data.draw(st.sampled_from([1, 1000, MIB, 4 * MIB]))
        offset = 0 if number % 7 == 0 else offset
        chunks.append(Chunk(f"{number}", f"pack-{number // 7}", offset, length))
        offset += length + data.draw(st.sampled_from([0, 0, 100, 200_000]))
    wanted = np.array(
        data.draw(
            st.lists(
                st.lists(st.booleans(), min_size=count, max_size=count),
                min_size=ranks,
                max_size=ranks,
            )
        ),
        dtype=bool,
    ).reshape(ranks, count)
    places = Places(chunks)
    assert len(places) == count
    dealt = deal_reads(places, wanted)
    where = np.argsort([places._of[id(chunk)] for chunk in chunks]).tolist()
    read = [
        (rank, where[i])
        for rank, ranges in enumerate(dealt)
        for first, stop in ranges
        for i in range(first, stop)
    ]
    shared = [i for i in range(count) if wanted[:, places._of[id(chunks[i])]].sum() > 1]
    assert sorted(number for _, number in read) == shared
    assert all(wanted[rank, places._of[id(chunks[number])]] for rank, number in read)
    for first, stop in (part for ranges in dealt for part in ranges):
        part = [chunks[i] for i in where[first:stop]]
        assert len({chunk.pack for chunk in part}) == 1
        assert part[-1].offset + part[-1].length - part[0].offset <= SLOT_BYTES
        gaps = [b.offset - a.offset - a.length for a, b in pairwise(part)]
        assert all(0 <= gap <= GAP_BYTES for gap in gaps)


def test_a_place_that_many_leaves_share_is_one_and_a_false_twin_is_another() -> None:
    same = [Chunk("a", "pack", 0, 10), Chunk("a", "pack", 0, 10), Chunk("b", "pack", 0, 10)]
    places = Places(same)
    numbers = places.of([Want(chunk, "x", bytes) for chunk in same]).tolist()
    assert numbers[0] == numbers[1] != numbers[2]


def test_replicas_share_the_reading_equally() -> None:
    chunks = [Chunk(f"{n}", f"pack-{n // 2}", (n % 2) * 4 * MIB, 4 * MIB) for n in range(64)]
    places = Places(chunks)
    dealt = deal_reads(places, np.ones((4, 64), dtype=bool))
    read = [sum(int(places.length[a:b].sum()) for a, b in ranges) for ranges in dealt]
    assert read == [64 * MIB] * 4


def test_without_shared_memory_a_warning_says_that_it_is_slow(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sharing, "_MEMORY", tmp_path / "none")
    with caplog.at_level(logging.WARNING):
        assert Ring.open(Group(1.0)) is None
    assert "every rank reads the checkpoint for itself" in caplog.text
