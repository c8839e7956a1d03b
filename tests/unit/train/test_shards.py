"""The sum over shards is one fixed tree, whoever adds what."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rayburst.train.order import rank_slice
from rayburst.train.shards import GradientTree, subtrees


def nested(shards: int) -> set[tuple[int, int]]:
    """All nodes of the tree over `shards`."""
    found, left = set(), [(0, shards)]
    while left:
        lo, hi = left.pop()
        found.add((lo, hi))
        if hi - lo > 1:
            left += [(lo, (lo + hi) // 2), ((lo + hi) // 2, hi)]
    return found


@given(shards=st.integers(1, 70), world=st.integers(1, 80))
def test_ranks_hold_whole_nodes_that_make_up_the_tree(shards: int, world: int) -> None:
    nodes = [n for r in range(world) for n in subtrees(rank_slice(shards, r, world), shards)]
    assert set(nodes) <= nested(shards)
    assert [s for lo, hi in nodes for s in range(lo, hi)] == list(range(shards))


@given(power=st.integers(0, 5), more=st.integers(0, 3))
def test_a_power_of_two_that_divides_the_shards_gives_each_rank_one_node(
    power: int, more: int
) -> None:
    """Then the exchange sends no more than any all-reduce has to."""
    world, shards = 2**power, 2 ** (power + more)
    assert all(len(subtrees(rank_slice(shards, r, world), shards)) == 1 for r in range(world))


@given(shards=st.integers(1, 33), world=st.integers(1, 8))
def test_no_rank_holds_more_nodes_than_the_tree_is_deep(shards: int, world: int) -> None:
    depth = max(1, (shards - 1).bit_length())
    for rank in range(world):
        assert len(subtrees(rank_slice(shards, rank, world), shards)) <= 2 * depth


def test_the_order_of_addition_is_that_of_the_tree() -> None:
    torch.manual_seed(0)
    values = [torch.randn(1000) * 10**i for i in range(6)]
    tree = GradientTree(shards=6, rank=0, world=1, like=values[0])
    for shard, value in enumerate(values):
        buffer = tree.buffer()
        tree.add(shard, buffer.copy_(value))
    a, b, c, d, e, f = values
    assert torch.equal(tree.total(), (a + (b + c)) + (d + (e + f)))
    assert not torch.equal(a + b + c + d + e + f, (a + (b + c)) + (d + (e + f)))


def test_buffers_are_used_again_and_a_step_can_be_given_up() -> None:
    tree = GradientTree(shards=8, rank=0, world=1, like=torch.empty(4))
    seen = set()
    for _ in range(3):
        for shard in range(8):
            buffer = tree.buffer().fill_(1.0)
            seen.add(buffer.data_ptr())
            tree.add(shard, buffer)
        total = tree.total()
        assert total.tolist() == [8.0] * 4
        tree.give_back(total)
        tree.add(0, tree.buffer())
        tree.forget()
    assert len(seen) <= 4, "three levels and the one being filled"


def test_a_forgotten_shard_is_an_error() -> None:
    tree = GradientTree(shards=4, rank=0, world=1, like=torch.empty(4))
    tree.add(0, tree.buffer())
    with pytest.raises(ValueError, match=r"expected \[\(0, 4\)\]"):
        tree.total()
