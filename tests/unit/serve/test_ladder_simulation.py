"""Degradation in simulated time: open arrivals, one slot, admission by forecast, deadlines."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

import pytest

from rayburst.serve.batcher import Batcher, Ticket
from rayburst.serve.ladder import Ladder
from rayburst.serve.scaling import Demand

SLO_S, MAX_BATCH = 1.0, 16
AGREEMENT = {"fp32": 1.0, "bf16": 0.999, "int8": 0.985, "tiny": 0.9}
FLOOR = 0.98
SPEED = {"fp32": 1.0, "bf16": 1.7, "int8": 2.6, "tiny": 9.0}


def cost_s(variant, n):
    return (0.030 + 0.020 * n) / SPEED[variant]


def capacity(variant):
    """Requests a second at the largest batch of which two fit the promise."""
    size = max(n for n in range(1, MAX_BATCH + 1) if 2 * cost_s(variant, n) <= SLO_S)
    return size / cost_s(variant, size)


@dataclass
class Seen:
    """What became of the requests of a run, each with the time at which it came."""

    good: Counter[str] = field(default_factory=Counter)  # answered in time, by variant
    late: int = 0
    refused: int = 0
    used: list[tuple[float, str]] = field(default_factory=list)  # a batch began: when, with what

    def between(self, begin_s, end_s):
        """The forms of the batches that began then, in order."""
        return [name for at, name in self.used if begin_s <= at < end_s]


def batcher_of(variants):
    demand = Demand(slo_s=SLO_S, max_batch=MAX_BATCH, slots=1)
    ladder = Ladder(variants, floor=FLOOR, work_s=demand.work_s)
    made = Batcher(max_batch=MAX_BATCH, patience_s=SLO_S, ladder=ladder)
    for variant in variants:
        for _ in range(20):
            for n in (1, 2, 4, 8, 16):
                made.costs.of(variant, 1).learn(n, cost_s(variant, n))
    return made


def poisson(phases, seed):
    """Arrivals for (rate, seconds) after each other."""
    rng, begin_s, arrivals = random.Random(seed), 0.0, []
    for rate, seconds in phases:
        now_s = begin_s
        while (now_s := now_s + rng.expovariate(rate)) < begin_s + seconds:
            arrivals.append(now_s)
        begin_s += seconds
    return arrivals


def run(arrivals, variants=AGREEMENT, *, cost=cost_s):
    """Serves the arrivals; a batch takes its cost give or take a tenth."""
    rng, seen, batcher = random.Random(0), Seen(), batcher_of(variants)
    coming, busy_until_s = 0, 0.0

    def arrive(at_s):
        batcher.ladder.asked(1, at_s)
        ticket = Ticket(None, arrived_s=at_s, deadline_s=at_s + SLO_S)
        busy_s = max(0.0, busy_until_s - at_s)
        is_idle = busy_s == 0.0 and not len(batcher)
        if is_idle or batcher.finish_s(ticket, busy_s=busy_s) <= SLO_S:
            batcher.add(ticket)
        else:
            seen.refused += 1

    while coming < len(arrivals) or len(batcher):
        if not len(batcher):
            arrive(arrivals[coming])
            busy_until_s = max(busy_until_s, arrivals[coming])
            coming += 1
            continue
        while coming < len(arrivals) and arrivals[coming] <= busy_until_s:
            arrive(arrivals[coming])
            coming += 1
        batch = batcher.take(busy_until_s)
        seen.late += len(batch.late)
        if not batch.tickets:
            continue
        seen.used.append((busy_until_s, batch.variant))
        took_s = cost(batch.variant, len(batch.tickets)) * rng.uniform(0.9, 1.1)
        batcher.learn(batch, took_s)
        busy_until_s += took_s
        while coming < len(arrivals) and arrivals[coming] <= busy_until_s:
            arrive(arrivals[coming])
            coming += 1
        for ticket in batch.tickets:
            is_good = busy_until_s <= ticket.deadline_s
            seen.good[batch.variant] += is_good
            seen.late += not is_good
    return seen


ALONE = {"fp32": 1.0}  # sheds, and cannot degrade
ABLE = capacity("fp32")


@pytest.mark.parametrize("times", [1.2, 1.6, 2.0, 4.0])
def test_under_overload_more_is_answered_in_time_than_by_shedding_alone(times):
    arrivals = poisson([(times * ABLE, 20)], seed=1)
    ladder, alone = run(arrivals), run(arrivals, ALONE)
    best = min(times * ABLE, capacity("int8"))  # of the rungs above the floor
    assert alone.refused > 0.1 * len(arrivals), "no overload"
    assert alone.good.total() > 0.9 * 20 * ABLE  # shedding alone is no straw man
    assert ladder.good.total() > 0.9 * 20 * best
    assert ladder.good.total() > 1.15 * alone.good.total()
    assert ladder.late < 0.05 * len(arrivals)
    assert {name for _, name in ladder.used} <= {"fp32", "bf16", "int8"}  # tiny is under the floor


def test_degradation_comes_before_refusal():
    arrivals = poisson([(2.0 * ABLE, 20)], seed=2)
    seen = run(arrivals)
    assert seen.refused < 0.01 * len(arrivals)
    assert seen.good["int8"] > 0.8 * len(arrivals)  # only it can carry twice the load


def test_a_load_that_the_best_form_can_carry_is_left_to_it():
    seen = run(poisson([(0.7 * ABLE, 30)], seed=3))
    assert {name for _, name in seen.used} == {"fp32"}
    assert not seen.refused


def test_it_stays_down_while_the_load_does_and_climbs_when_it_falls():
    seen = run(poisson([(0.5 * ABLE, 10), (1.6 * ABLE, 25), (0.5 * ABLE, 25)], seed=4))
    assert set(seen.between(0, 10)) == {"fp32"}
    during = seen.between(15, 35)
    assert "int8" not in during  # a rung that is not needed is not used
    assert during.count("fp32") <= 3  # now and then one, to learn what it costs by now
    assert set(seen.between(50, 60)) == {"fp32"}


def test_two_rungs_down_it_climbs_one_after_the_other():
    seen = run(poisson([(2.2 * ABLE, 10), (0.4 * ABLE, 20)], seed=5))
    after = seen.between(11, 30)
    order = [name for n, name in enumerate(after) if n == 0 or name != after[n - 1]]
    assert order[0] == "int8" and order[-1] == "fp32"
    assert "bf16" in order


def test_a_pause_begins_at_the_top_again():
    seen = run(poisson([(2.0 * ABLE, 10), (0.001, 10), (0.3 * ABLE, 5)], seed=6))
    assert set(seen.between(20, 25)) == {"fp32"}


def test_a_form_whose_known_costs_are_old_is_tried_again_at_a_steady_load():
    """The machine was slow for a while: fp32 is taken for four times as dear as it is by then."""
    slow_until_s = 15.0
    batches = []

    def cost(variant, n):
        batches.append(n)
        slow = 4.0 if sum(batches) < slow_until_s * 0.5 * ABLE else 1.0
        return slow * cost_s(variant, n)

    seen = run(poisson([(0.5 * ABLE, 120)], seed=7), cost=cost)
    assert "fp32" not in seen.between(5, 10), "it was never slow enough to degrade"
    assert set(seen.between(100, 120)) == {"fp32"}


def test_after_a_standstill_full_batches_come_back():
    """A pause of the machine makes all that wait nearly late; small batches would keep it so."""
    times = 1.0
    stalled = []

    def cost(variant, n):
        is_first = not stalled
        stalled.append(n)
        return cost_s(variant, n) + (0.6 if is_first else 0.0)

    arrivals = poisson([(times * ABLE, 20)], seed=8)
    seen = run(arrivals, ALONE, cost=cost)
    assert stalled, "nothing was computed"
    assert seen.good.total() > 0.9 * len(arrivals)
