"""Each sample once an epoch, at any world size, from any position."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayburst.train.order import Order, rank_slice, seed_of


@given(
    samples=st.integers(1, 200),
    global_batch=st.integers(1, 70),
    epochs=st.integers(1, 3),
    seed=st.integers(0, 2**63),
)
def test_every_sample_comes_once_an_epoch(
    samples: int, global_batch: int, epochs: int, seed: int
) -> None:
    order = Order(samples=samples, global_batch=global_batch, seed=seed, limit=epochs * samples)
    position, seen = 0, []
    while len(batch := order.batch(position)):
        epoch, index = order.indices(batch)
        seen += list(zip(epoch.tolist(), index.tolist(), strict=True))
        position = batch.stop
    assert sorted(seen) == [(e, i) for e in range(epochs) for i in range(samples)]


@given(count=st.integers(0, 100), world=st.integers(1, 20))
def test_ranks_share_without_gap_or_overlap(count: int, world: int) -> None:
    parts = [rank_slice(count, rank, world) for rank in range(world)]
    assert [i for part in parts for i in part] == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_part_of_a_batch_is_part_of_its_order() -> None:
    order = Order(samples=30, global_batch=20, seed=1)
    whole = order.indices(order.batch(20))
    part = order.indices(order.batch(20)[5:12])
    assert np.array_equal(whole[1][5:12], part[1])
    assert set(whole[0].tolist()) == {0, 1}, "batches run over the end of an epoch"


def test_epochs_and_seeds_draw_other_orders() -> None:
    order = Order(samples=100, global_batch=100, seed=1)
    first, second = order.indices(range(100))[1], order.indices(range(100, 200))[1]
    other = Order(samples=100, global_batch=100, seed=2).indices(range(100))[1]
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, other)


def test_random_numbers_belong_to_seed_step_and_lane() -> None:
    seeds = [seed_of(s, step, lane) for s in (0, 1) for step in range(50) for lane in range(50)]
    assert len(set(seeds)) > len(seeds) - 10
    assert seed_of(3, 4, 5) == seed_of(3, 4, 5)
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_an_empty_dataset_says_what_to_give() -> None:
    with pytest.raises(ValueError, match="a dataset that holds samples"):
        Order(samples=0, global_batch=4, seed=0)
