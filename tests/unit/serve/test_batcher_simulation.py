"""The batcher in simulated time: against batches frozen early, and against the optimum.

The stand-in for `@serve.batch` does what Ray 2.60's does with a handler that awaits: a batch is
closed when it is full or when its first request has waited `wait_s`, whether a slot is free or
not, and closed batches queue for the slot.
"""

from __future__ import annotations

import random
from functools import cache

import pytest

from rayburst.serve.batcher import Batcher, Ticket

FIXED_S, EACH_S = 0.020, 0.00025


def cost_s(n):
    return FIXED_S + EACH_S * n


def poisson(rate, count, seed):
    rng, now_s, arrivals = random.Random(seed), 0.0, []
    for _ in range(count):
        now_s += rng.expovariate(rate)
        arrivals.append(now_s)
    return arrivals


def late_binding(arrivals, *, slo_s, max_batch, cost=cost_s, known=True):
    """Latency of each request under rayburst's batcher, one slot; None where it was dropped."""
    batcher = Batcher(max_batch=max_batch)
    if known:
        for _ in range(80):
            for n in range(1, max_batch + 1):
                batcher.costs.of("", 1).learn(n, cost(n))
    latency = [None] * len(arrivals)
    coming, free_s = 0, 0.0
    while coming < len(arrivals) or len(batcher):
        if not len(batcher):
            free_s = max(free_s, arrivals[coming])
        while coming < len(arrivals) and arrivals[coming] <= free_s:
            at = arrivals[coming]
            batcher.add(Ticket(coming, arrived_s=at, deadline_s=at + slo_s))
            coming += 1
        batch = batcher.take(free_s)
        if batch is None or not batch.tickets:
            continue
        took_s = cost(len(batch.tickets))
        batcher.learn(batch, took_s)
        free_s += took_s
        for ticket in batch.tickets:
            latency[ticket.payload] = free_s - ticket.arrived_s
    return latency


def frozen_early(arrivals, *, wait_s, max_batch, cost=cost_s):
    """Latency of each request under `@serve.batch`."""
    closed, n = [], 0
    while n < len(arrivals):
        end = n + 1
        while end < min(len(arrivals), n + max_batch) and arrivals[end] <= arrivals[n] + wait_s:
            end += 1
        is_full = end - n == max_batch
        closed.append((arrivals[end - 1] if is_full else arrivals[n] + wait_s, n, end))
        n = end
    latency, free_s = [0.0] * len(arrivals), 0.0
    for closed_s, first, end in closed:
        free_s = max(free_s, closed_s) + cost(end - first)
        for n in range(first, end):
            latency[n] = free_s - arrivals[n]
    return latency


def median(values):
    return sorted(values)[len(values) // 2]


def test_batches_that_freeze_early_collapse_where_late_ones_hold():
    arrivals = poisson(200, 2000, seed=1)
    early = frozen_early(arrivals, wait_s=0.002, max_batch=32)
    late = late_binding(arrivals, slo_s=10, max_batch=32)
    assert None not in late
    assert median(early) > 1.0  # the queue of small batches only grows
    assert max(late) < 0.1


@pytest.mark.parametrize("rate", [5, 40, 200, 800])
def test_at_every_rate_nobody_waits_longer_than_under_the_best_frozen_wait(rate):
    arrivals = poisson(rate, 1500, seed=rate)
    late = late_binding(arrivals, slo_s=10, max_batch=32, known=False)
    best = min(
        median(frozen_early(arrivals, wait_s=wait_s, max_batch=32))
        for wait_s in (0.0, 0.002, 0.005, 0.010, 0.020, 0.050)
    )
    assert median(late) <= best


def test_the_promise_is_kept_up_to_the_limit_of_the_machine():
    capacity = 32 / cost_s(32)
    arrivals = poisson(0.9 * capacity, 4000, seed=3)
    late = late_binding(arrivals, slo_s=0.1, max_batch=32)
    assert sum(x is None or x > 0.1 for x in late) < 0.001 * len(arrivals)


def optimum(arrivals, *, slo_s, max_batch, cost):
    """The most requests that any schedule of one slot answers in time, found by trying all.

    Requests are in order of arrival and of deadline, so batches of neighbours suffice (exchange
    argument); a schedule may drop any request and may wait for any arrival.
    """

    @cache
    def best(n, free_s):
        if n == len(arrivals):
            return 0
        found = best(n + 1, free_s)  # drop it
        for end in range(n + 1, min(len(arrivals), n + max_batch) + 1):
            done_s = max(free_s, arrivals[end - 1]) + cost(end - n)
            met = sum(done_s <= arrivals[k] + slo_s for k in range(n, end))
            found = max(found, met + best(end, round(done_s, 9)))
        return found

    return best(0, 0.0)


def test_small_cases_come_close_to_the_optimum_that_knows_the_future():
    def cost(n):
        return 0.010 + 0.004 * n

    ours = theirs = 0
    for seed in range(150):
        arrivals = poisson(60 + seed, 9, seed)
        slo_s = 0.03 + 0.0004 * seed
        latency = late_binding(arrivals, slo_s=slo_s, max_batch=4, cost=cost)
        ours += sum(x is not None and x <= slo_s for x in latency)
        theirs += optimum(tuple(arrivals), slo_s=slo_s, max_batch=4, cost=cost)
        assert ours <= theirs, "the optimum is none"
    assert ours / theirs > 0.9
