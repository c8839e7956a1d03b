"""The live policy in replay: blind to the future, never late, steady; gangs; several zones."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayburst.fleet.deadline import DeadlinePolicy
from rayburst.fleet.hazards import Hazards, pooled_prior
from rayburst.fleet.recorded import RECORDED
from rayburst.fleet.replay import baselines
from rayburst.fleet.replay.gangs import elastic_gang
from rayburst.fleet.replay.lanes import Jobs, Lanes, Rules
from rayburst.fleet.replay.live import LivePolicy
from rayburst.fleet.replay.play import market, play
from rayburst.fleet.replay.traces import ZoneTrace

PRIOR = pooled_prior(RECORDED)
SHARED = DeadlinePolicy(tables=8)
TERMS = Rules(work_s=24 * 600.0, changeover_s=300.0, price_ratio=3.0, tick_s=600.0)
JOBS = Jobs(start=np.array([0, 5]), allowed_s=np.array([44 * 600.0, 30 * 600.0]))
TICKS = 50

Log = list[tuple[int, list[int], list[int], list[int]]]


class Spy(LivePolicy):
    """Notes every decision."""

    def __init__(self, prior: Hazards, zones: list[str]):
        super().__init__(prior, zones, policy=SHARED)
        self.log: Log = []

    def __call__(self, lanes: Lanes, rows: np.ndarray, tick: int, up: np.ndarray) -> tuple:
        runs, zone = super().__call__(lanes, rows, tick, up)
        self.log.append((tick, rows.tolist(), runs.tolist(), zone.tolist()))
        return runs, zone


def replayed(up: np.ndarray, jobs: Jobs = JOBS) -> tuple[Log, Lanes]:
    spy = Spy(PRIOR, [f"z{i}" for i in range(up.shape[1])])
    return spy.log, play(spy, up, np.ones_like(up), jobs, TERMS)


markets = st.lists(st.booleans(), min_size=TICKS, max_size=TICKS).map(
    lambda ups: np.array(ups)[:, None]
)


@given(before=markets, after=markets, tick=st.integers(0, TICKS - 1))
@settings(max_examples=60, deadline=None)
def test_no_decision_depends_on_a_later_reading(
    before: np.ndarray, after: np.ndarray, tick: int
) -> None:
    changed = np.concatenate([before[: tick + 1], after[tick + 1 :]])
    one, other = replayed(before)[0], replayed(changed)[0]
    assert [e for e in one if e[0] <= tick] == [e for e in other if e[0] <= tick]


@given(market_=markets, tick=st.integers(0, TICKS - 1))
@settings(max_examples=30, deadline=None)
def test_the_rates_of_a_decision_rest_on_readings_before_it(market_: np.ndarray, tick: int) -> None:
    """The reading at the decision says only what may be taken now; the rule was fixed before."""
    flipped = market_.copy()
    flipped[tick:] = ~flipped[tick:]
    found = []
    for up in (market_, flipped):
        policy = LivePolicy(PRIOR, ["z"], policy=SHARED)
        for now in range(tick + 1):
            policy.observe(now * 600.0, up[now])
        found.append(policy._record.zones_now([1.0])[0].hazards)
    assert found[0] == found[1]


@given(markets)
@settings(max_examples=60, deadline=None)
def test_no_deadline_is_missed_and_live_spot_is_kept(up: np.ndarray) -> None:
    log, lanes = replayed(up)
    assert not lanes.missed.any()
    on_spot: set[int] = set()
    for tick, rows, runs, _ in log:
        for row, code in zip(rows, runs, strict=True):
            if row in on_spot and up[tick, 0]:
                assert code == 1
        on_spot = {row for row, code in zip(rows, runs, strict=True) if code == 1}


@pytest.mark.parametrize("up", [True, False])
def test_a_market_that_never_changes_causes_no_oscillation(up: bool) -> None:
    _, lanes = replayed(np.full((TICKS, 1), up))
    assert (lanes.starts == 1).all()


@given(st.lists(st.tuples(*[st.booleans()] * 3), min_size=TICKS, max_size=TICKS))
@settings(max_examples=20, deadline=None)
def test_several_zones_are_never_late_and_never_used_while_down(ups: list[tuple]) -> None:
    up = np.array(ups)
    log, lanes = replayed(up)
    assert not lanes.missed.any()
    for tick, _, runs, zones in log:
        assert all(up[tick, z] for code, z in zip(runs, zones, strict=True) if code == 1)


def gang_trace(counts: list[int]) -> ZoneTrace:
    return ZoneTrace(trace_set="made", name="gang", tick_s=600.0, count=np.array(counts))


def elastic(trace: ZoneTrace) -> Lanes:
    return elastic_gang(trace, nodes=8, jobs=JOBS, rules=TERMS, prior=PRIOR, policy=SHARED)


@given(st.lists(st.integers(0, 8), min_size=TICKS, max_size=TICKS))
@settings(max_examples=40, deadline=None)
def test_an_elastic_gang_is_never_late(counts: list[int]) -> None:
    lanes = elastic(gang_trace(counts))
    assert not lanes.missed.any()
    assert (lanes.cost_ratio > 0).all()


def test_a_gang_that_shrinks_beats_one_that_needs_all_its_nodes() -> None:
    trace = gang_trace([8] * 10 + [7] * 40)
    up, known = market([trace], nodes=8)
    whole = play(baselines.uniform_progress(keeps_on_demand=True), up, known, JOBS, TERMS)
    parts = elastic(trace)
    assert not parts.missed.any()
    assert parts.cost_ratio.mean() < 0.8 * whole.cost_ratio.mean()


def test_a_gang_that_is_always_whole_costs_what_a_single_job_does() -> None:
    trace = gang_trace([8] * TICKS)
    parts = elastic(trace)
    _, single = replayed(np.ones((TICKS, 1), bool))
    assert parts.cost_ratio == pytest.approx(single.cost_ratio)
