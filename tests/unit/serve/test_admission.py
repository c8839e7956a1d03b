"""Admission: in time or refused at once, and a tenant that asks too much hurts itself only."""

from __future__ import annotations

import random

import pytest

from rayburst.serve.admission import Admission, Load
from rayburst.serve.batcher import Batcher, Ticket


def ticket(slo_s=0.1, tenant="", at=0.0):
    return Ticket(None, arrived_s=at, deadline_s=at + slo_s, tenant=tenant)


def load(forecast_s=0.01, room=100.0, held=10, is_idle=False):
    return Load(forecast_s=forecast_s, room=room, held=held, is_idle=is_idle)


def test_what_fits_is_admitted():
    assert Admission(max_waiting=100).judge(ticket(), now_s=0, load=load()) is None


def test_what_would_be_late_is_refused_with_the_time_by_which_it_would():
    refusal = Admission(max_waiting=100).judge(ticket(0.1), now_s=0, load=load(forecast_s=0.35))
    assert refusal.status == 503
    assert refusal.retry_after_s == pytest.approx(0.25)
    assert "350 ms" in refusal.why
    assert "100 ms" in refusal.why


def test_an_idle_replica_lets_anybody_in_whatever_it_expects():
    admission = Admission(max_waiting=100)
    assert admission.judge(ticket(), now_s=0, load=load(forecast_s=9, is_idle=True)) is None


def test_the_queue_has_an_end():
    refusal = Admission(max_waiting=10).judge(ticket(), now_s=0, load=load(held=10))
    assert (refusal.status, "max_waiting" in refusal.why) == (503, True)


def test_a_replica_that_leaves_admits_nothing():
    admission = Admission(max_waiting=10)
    admission.close(back_in_s=2)
    refusal = admission.judge(ticket(), now_s=0, load=load(is_idle=True))
    assert (refusal.status, refusal.retry_after_s) == (503, 2)


def test_shares_go_by_weight_among_those_seen_lately():
    admission = Admission(max_waiting=100, shares={"big": 3.0})
    for tenant in ("big", "small"):
        admission.enter(tenant, 0.0)
        admission.leave(tenant)
    assert admission.share("big", 1.0) == 0.75
    assert admission.share("small", 1.0) == 0.25
    assert admission.share("small", 60.0) == 1.0  # the other one went silent


def test_a_tenant_that_asks_alone_is_refused_for_lateness_and_for_nothing_else():
    admission = Admission(max_waiting=1000)
    for _ in range(40):
        admission.enter("", 0.0)
    full = Load(forecast_s=0.05, room=32, held=40, is_idle=False)
    assert admission.judge(ticket(tenant=""), now_s=0.0, load=full) is None
    late = full._replace(forecast_s=9.0)
    assert admission.judge(ticket(tenant=""), now_s=0.0, load=late).status == 503
    admission.enter("other", 0.0)
    assert admission.judge(ticket(tenant=""), now_s=0.0, load=full).status == 429


def test_one_abusive_tenant_costs_the_others_nothing():
    """Three tenants at a fifth of the capacity each, and one that asks for ten times all of it."""
    rng = random.Random(7)
    cost_s = 0.010  # a batch of eight, whatever its size: 800 requests a second
    batcher = Batcher(max_batch=8)
    for _ in range(50):
        for n in range(1, 9):
            batcher.costs.of("", 1).learn(n, cost_s)
    admission = Admission(max_waiting=1000)
    rates = {"abuser": 8000, "a": 160, "b": 160, "c": 160}
    asked, refused = dict.fromkeys(rates, 0), dict.fromkeys(rates, 0)
    answered, lateness = dict.fromkeys(rates, 0), []
    coming = sorted(
        (at, tenant) for tenant, rate in rates.items() for at in _poisson(rng, rate, until_s=4)
    )
    free_s, running, place = 0.0, [], 0
    while place < len(coming) or len(batcher):
        at = coming[place][0] if place < len(coming) else float("inf")
        if len(batcher) and free_s <= at:
            for one in running:
                admission.leave(one.tenant)
            batch = batcher.take(free_s)
            running = batch.tickets
            for one in [*batch.late]:
                admission.leave(one.tenant)
            free_s += cost_s if running else 0
            for one in running:
                answered[one.tenant] += 1
                lateness.append(free_s - one.deadline_s)
            continue
        free_s = max(free_s, at) if not len(batcher) else free_s
        one = ticket(tenant=coming[place][1], at=at)
        place += 1
        busy_s = max(0.0, free_s - at)
        state = Load(
            forecast_s=batcher.finish_s(one, busy_s=busy_s),
            room=8 * 0.1 / cost_s,
            held=len(batcher) + len(running),
            is_idle=False,
        )
        if at > 1:  # the first second is the start
            asked[one.tenant] += 1
        if admission.judge(one, now_s=at, load=state) is None:
            admission.enter(one.tenant, at)
            batcher.add(one)
        elif at > 1:
            refused[one.tenant] += 1
    for tenant in ("a", "b", "c"):
        assert refused[tenant] <= 0.01 * asked[tenant], (tenant, refused, asked)
    assert refused["abuser"] > 0.8 * asked["abuser"]
    assert answered["abuser"] > 4 * 200  # and nothing of the machine is wasted on fairness
    assert max(lateness) < 0.01


def _poisson(rng, rate, until_s):
    at = rng.expovariate(rate)
    while at < until_s:
        yield at
        at += rng.expovariate(rate)
