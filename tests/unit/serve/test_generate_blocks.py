"""Blocks are handed out, shared by what they hold, and never lost."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayburst.serve.generate.blocks import BlockPool, chain, root

A, B, C = (chain(root(b""), [n]) for n in range(3))


def test_a_block_is_found_by_what_it_holds_while_in_use_and_after() -> None:
    pool = BlockPool(count=3, size=4)
    taken = pool.take(2)
    assert taken is not None
    pool.keep(taken[0], A)
    assert pool.match([A, B]) == taken[:1]
    assert pool.users(taken[0]) == 2
    pool.release(taken)
    pool.release(taken[:1])
    assert (pool.available, pool.findable) == (3, 1)
    assert pool.match([A]) == taken[:1]


def test_a_run_ends_where_a_block_is_missing() -> None:
    pool = BlockPool(count=2, size=4)
    first, second = pool.take(2) or []
    pool.keep(first, A)
    pool.keep(second, C)
    assert pool.match([A, B, C]) == [first]


def test_the_longest_unused_is_forgotten_first_and_the_end_before_the_beginning() -> None:
    pool = BlockPool(count=3, size=4)
    blocks = pool.take(3) or []
    for block, key in zip(blocks, (A, B, C), strict=True):
        pool.keep(block, key)
    pool.release(blocks)
    assert pool.take(1) == blocks[2:]
    assert pool.match([A, B, C]) == blocks[:2]


def test_too_many_are_not_taken_and_nothing_is_released_twice() -> None:
    pool = BlockPool(count=2, size=4)
    assert pool.take(3) is None
    assert pool.available == 2
    (block,) = pool.take(1) or []
    pool.release([block])
    with pytest.raises(ValueError, match="nobody uses it"):
        pool.release([block])
    with pytest.raises(ValueError, match="give 1 or more"):
        BlockPool(count=0, size=4)


def test_keys_tell_what_came_before_and_whose_it_is() -> None:
    assert chain(A, [7]) != chain(B, [7])
    assert root(b"ads") != root(b"")
    # a salt that spells out another text's beginning is still no part of it
    assert root(A + bytes(8)) != chain(A, [0])


@given(
    st.lists(st.tuples(st.sampled_from(["take", "match", "release", "keep"]), st.integers(0, 5)))
)
def test_every_block_is_free_findable_or_in_use(does: list[tuple[str, int]]) -> None:
    pool = BlockPool(count=4, size=1)
    keys = [chain(root(b""), [n]) for n in range(6)]
    held: list[int] = []
    for what, number in does:
        if what == "take":
            held += pool.take(number) or []
        elif what == "match":
            held += pool.match(keys[: number + 1])
        elif what == "keep" and held:
            pool.keep(held[number % len(held)], keys[number])
        elif what == "release" and held:
            pool.release([held.pop(number % len(held))])
        uses = Counter(held)
        assert [pool.users(block) for block in range(4)] == [uses[block] for block in range(4)]
        assert pool.available == 4 - len(uses)
