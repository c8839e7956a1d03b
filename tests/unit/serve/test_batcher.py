"""The batcher: order, limits, deadlines and cancellation, for any arrivals."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayburst.serve.batcher import Batcher, Ticket, power_of_two

PATIENCE_S = 1.0


def ticket(n=0, *, at=0.0, slo=1.0, **more):
    return Ticket(n, arrived_s=at, deadline_s=at + slo, **more)


def trained(max_batch=8, fixed_s=0.010, each_s=0.001, length=1):
    """A batcher that knows its costs exactly."""
    batcher = Batcher(max_batch=max_batch, patience_s=PATIENCE_S)
    curve = batcher.costs.of("", length)
    for _ in range(60):
        for n in {1, max_batch // 2 or 1, max_batch}:
            curve.learn(n, fixed_s + each_s * n)
    return batcher


def payloads(batch):
    return [t.payload for t in batch.tickets]


def test_a_lone_request_is_taken_at_once():
    batcher = trained()
    batcher.add(ticket("only"))
    assert payloads(batcher.take(0.0)) == ["only"]
    assert batcher.take(0.0) is None


def test_what_waits_is_taken_together_up_to_the_limit_in_order():
    batcher = trained(max_batch=4)
    for n in range(6):
        batcher.add(ticket(n))
    assert payloads(batcher.take(0.0)) == [0, 1, 2, 3]
    assert payloads(batcher.take(0.0)) == [4, 5]
    assert len(batcher) == 0


def test_a_batch_stops_growing_where_the_oldest_deadline_would_break():
    batcher = trained(max_batch=8, fixed_s=0.010, each_s=0.010)
    for n in range(8):
        batcher.add(ticket(n, slo=0.058))  # room for four: 10 + 4 x 10 ms
    assert payloads(batcher.take(0.0)) == [0, 1, 2, 3]


def test_a_deadline_that_nothing_can_hold_does_not_shrink_the_batch():
    batcher = trained(max_batch=8, fixed_s=0.050, each_s=0.001)
    batcher.add(ticket("lost", slo=0.001))
    for n in range(4):
        batcher.add(ticket(n, slo=1.0))
    assert payloads(batcher.take(0.0)) == ["lost", 0, 1, 2, 3]


def test_requests_whose_deadline_passed_are_not_computed():
    batcher = trained()
    old, new = ticket("old", at=0.0, slo=0.1), ticket("new", at=0.2)
    batcher.add(old)
    batcher.add(new)
    batch = batcher.take(0.2)
    assert (payloads(batch), batch.late) == (["new"], [old])
    batcher.add(ticket("alone", at=0.2, slo=0.1))
    batch = batcher.take(1.0)
    assert (payloads(batch), [t.payload for t in batch.late]) == ([], ["alone"])


def test_lengths_share_a_batch_by_bucket_and_the_head_says_which():
    batcher = trained(max_batch=8)
    for length in (5, 100, 7, 120, 8):
        curve = batcher.costs.of("", power_of_two(length))
        curve.learn(8, 0.01)
        batcher.add(ticket(length, length=length))
    first, second = batcher.take(0.0), batcher.take(0.0)
    assert (payloads(first), first.length) == ([5, 7, 8], 8)
    assert (payloads(second), second.length) == ([100, 120], 128)


def test_unknown_costs_are_tried_in_doublings():
    batcher = Batcher(max_batch=32)
    sizes = []
    for n in range(40):
        batcher.add(ticket(n))
    while (batch := batcher.take(0.0)) is not None:
        sizes.append(len(batch.tickets))
        batcher.learn(batch, 0.001)
    assert sizes == [1, 2, 4, 8, 16, 9]


def test_the_urgent_go_first_but_starve_nobody():
    batcher = trained(max_batch=1)
    batcher.add(ticket("bulk", at=0.0, slo=60, priority=2))
    taken = []
    for n in range(40):  # an urgent request every 0.1 s, one slot every 0.1 s: none is ever free
        batcher.add(ticket(n, at=0.1 * n, slo=60, priority=0))
        taken += payloads(batcher.take(0.1 * n))
    assert taken[0] == 0
    assert 19 <= taken.index("bulk") <= 21  # after 2 x patience


def test_a_forecast_counts_what_goes_before_and_leaves_out_what_does_not():
    batcher = trained(max_batch=4, fixed_s=0.010, each_s=0.0)
    for n in range(8):
        batcher.add(ticket(n, priority=1))
    ahead = batcher.finish_s(ticket(priority=1), busy_s=0.005)
    urgent = batcher.finish_s(ticket(priority=0), busy_s=0.005)
    assert ahead == pytest.approx(0.035, rel=0.1)  # busy, two batches, its own
    assert urgent == pytest.approx(0.015, rel=0.1)
    assert batcher.finish_s(ticket(priority=1), busy_s=0, slots=2) < ahead


def test_no_batch_is_smaller_than_one():
    with pytest.raises(ValueError, match="one request or more"):
        Batcher(max_batch=0)


actions = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 3), st.integers(1, 70), st.floats(0.001, 2)),
        st.tuples(st.just("take"), st.floats(0, 0.5)),
        st.tuples(st.just("cancel"), st.integers(0, 60)),
    ),
    max_size=80,
)


@given(actions, st.integers(1, 9))
def test_for_any_arrivals_each_request_leaves_once_in_order_within_the_limit(steps, max_batch):
    batcher = Batcher(max_batch=max_batch, patience_s=PATIENCE_S)
    now_s, added, out, cancelled = 0.0, [], [], set()

    def take():
        batch = batcher.take(now_s)
        if batch is None:
            return False
        assert len(batch.tickets) + len(batch.late) > 0
        assert len(batch.tickets) <= max_batch
        assert all(t.deadline_s <= now_s for t in batch.late)
        assert all(t.deadline_s > now_s for t in batch.tickets)
        assert all(power_of_two(t.length) == batch.length for t in batch.tickets)
        keys = [t.arrived_s + t.priority * PATIENCE_S for t in batch.tickets]
        assert keys == sorted(keys)
        out.extend([*batch.late, *batch.tickets])
        if batch.tickets:
            batcher.learn(batch, 0.001 * len(batch.tickets))
        return True

    for step in steps:
        if step[0] == "add":
            _, priority, length, slo = step
            added.append(ticket(len(added), at=now_s, slo=slo, priority=priority, length=length))
            batcher.add(added[-1])
        elif step[0] == "take":
            now_s += step[1]
            take()
        elif step[1] < len(added):
            one = added[step[1]]
            assert batcher.cancel(one) == (one not in out and step[1] not in cancelled)
            if one not in out:
                cancelled.add(step[1])
        assert len(batcher) == len(added) - len(out) - len(cancelled)
    while take():
        pass
    assert sorted(t.payload for t in out) == [n for n in range(len(added)) if n not in cancelled]
    for length in {power_of_two(t.length) for t in added}:
        for priority in range(4):
            mine = [
                t.payload
                for t in out
                if (t.priority, power_of_two(t.length)) == (priority, length)
                and t.deadline_s > now_s
            ]
            assert mine == sorted(mine), "first come, first served within a priority"
