"""One job's decisions: budget, live spot, the safety net, then the cheapest of the table."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayburst.errors import SpecError
from rayburst.fleet.deadline import DeadlinePolicy
from rayburst.fleet.hazards import BINS, Hazards, pooled_prior
from rayburst.fleet.job_state import JobMarketState, Runs, ZoneNow
from rayburst.fleet.recorded import RECORDED
from rayburst.fleet.slack_table import SLACK_STEPS, STEPS, After, TableKey, solve

PRIOR = pooled_prior(RECORDED)
POLICY = DeadlinePolicy()
HOUR = 3600.0
ZONE = ZoneNow(name="a", up=True, age_s=0.0, usd_per_hour=1.0, hazards=PRIOR)


def job(**change: object) -> JobMarketState:
    state = JobMarketState(
        work_left_s=48 * HOUR,
        time_left_s=60 * HOUR,
        horizon_s=60 * HOUR,
        changeover_s=720.0,
        tick_s=600.0,
        zones=(ZONE,),
        on_demand_usd_per_hour=3.0,
    )
    return replace(state, **change)


states = st.builds(
    lambda work_h, spare_h, up, age, runs, budget: job(
        work_left_s=work_h * HOUR,
        time_left_s=(work_h + spare_h) * HOUR,
        zones=(replace(ZONE, up=up, age_s=age),),
        runs=runs,
        zone="a" if runs is Runs.SPOT else None,
        budget_left_usd=budget,
    ),
    work_h=st.floats(0.01, 48),
    spare_h=st.floats(-2, 30),
    up=st.booleans(),
    age=st.floats(0, 1e5),
    runs=st.sampled_from(Runs),
    budget=st.none() | st.floats(0, 200),
)


@given(states)
@settings(deadline=None)
def test_the_same_state_gets_the_same_decision_with_a_reason(state: JobMarketState) -> None:
    first, again = POLICY.decide(state), POLICY.decide(state)
    assert first == again
    assert any(c.isdigit() for c in first.why)


@given(states)
@settings(deadline=None)
def test_spot_is_only_taken_where_it_is_up(state: JobMarketState) -> None:
    decision = POLICY.decide(state)
    assert (decision.action is Runs.SPOT) == (decision.zone is not None)
    if decision.action is Runs.SPOT:
        assert state.zones[0].up


@given(states)
@settings(deadline=None)
def test_live_spot_is_left_only_for_the_budget(state: JobMarketState) -> None:
    if state.runs is Runs.SPOT and state.zones[0].up:
        decision = POLICY.decide(state)
        assert decision.action is Runs.SPOT or decision.short_usd > 0


@given(states)
@settings(deadline=None)
def test_waiting_never_costs_a_deadline_that_can_be_met(state: JobMarketState) -> None:
    state = replace(state, budget_left_usd=None)
    if POLICY.decide(state).action is Runs.IDLE:
        spare_s = state.time_left_s - state.work_left_s - state.tick_s
        assert spare_s >= state.changeover_s - 1e-3


@given(states)
@settings(deadline=None)
def test_a_tick_never_costs_more_than_the_budget_left(state: JobMarketState) -> None:
    if state.budget_left_usd is None:
        return
    decision = POLICY.decide(state)
    rate = {Runs.IDLE: 0.0, Runs.SPOT: 1.0, Runs.ON_DEMAND: 3.0}[decision.action]
    same = state.runs is decision.action and (decision.action is not Runs.SPOT or ZONE.up)
    need_s = state.work_left_s + (0.0 if same else state.changeover_s)
    spent = min(state.tick_s, need_s) / HOUR * rate
    assert spent <= state.budget_left_usd + 1e-6


def test_the_net_goes_on_demand_while_there_is_still_time() -> None:
    net_s = 2 * 720.0 + 600.0
    inside = POLICY.decide(job(time_left_s=48 * HOUR + net_s - 1))
    assert inside.action is Runs.ON_DEMAND and "safety net" in inside.why and inside.late_s == 0


def test_live_spot_is_kept_even_inside_the_net() -> None:
    decision = POLICY.decide(job(time_left_s=48 * HOUR + 100, runs=Runs.SPOT, zone="a"))
    assert decision.action is Runs.SPOT and "kept" in decision.why


def test_a_deadline_that_cannot_be_met_is_told_at_once() -> None:
    decision = POLICY.decide(job(time_left_s=48 * HOUR))
    assert decision.action is Runs.ON_DEMAND
    assert decision.late_s == pytest.approx(720.0) and "cannot be met" in decision.why


def test_a_budget_that_carries_only_spot_gives_up_the_deadline_and_says_so() -> None:
    tight = job(time_left_s=48 * HOUR + 1500, budget_left_usd=60.0)
    up = POLICY.decide(tight)
    down = POLICY.decide(replace(tight, zones=(replace(ZONE, up=False),)))
    assert up.action is Runs.SPOT and up.short_usd > 0 and "budget" in up.why
    assert down.action is Runs.ON_DEMAND and down.short_usd == pytest.approx(up.short_usd)
    spent = replace(tight, budget_left_usd=48.5, zones=(replace(ZONE, up=False),))
    assert POLICY.decide(spent).action is Runs.IDLE


def test_an_ample_budget_changes_nothing() -> None:
    for spare_h in (0.5, 2.0, 12.0):
        state = job(time_left_s=(48 + spare_h) * HOUR)
        assert POLICY.decide(replace(state, budget_left_usd=1e6)) == POLICY.decide(state)


def test_done_work_needs_nothing() -> None:
    assert POLICY.decide(job(work_left_s=0.0)).action is Runs.IDLE


def test_without_a_zone_the_work_runs_on_demand() -> None:
    assert POLICY.decide(job(zones=())).action is Runs.ON_DEMAND


def test_the_steadier_of_two_zones_is_taken_and_the_cheaper_of_two_alike() -> None:
    calm = replace(ZONE, name="calm", hazards=Hazards(up=(1e-6,) * BINS, down=PRIOR.down))
    cheap = replace(ZONE, name="cheap", usd_per_hour=0.5)
    for other, best in ((calm, "calm"), (cheap, "cheap")):
        for zones in ((ZONE, other), (other, ZONE)):
            assert POLICY.decide(job(zones=zones, together=PRIOR)).zone == best


def test_several_zones_need_the_rates_of_all_together() -> None:
    with pytest.raises(SpecError, match="together"):
        POLICY.decide(job(zones=(ZONE, replace(ZONE, name="b"))))


@pytest.mark.parametrize(
    "wrong", [{"tick_s": 0.0}, {"changeover_s": -1.0}, {"runs": Runs.SPOT}, {"zone": "a"}]
)
def test_a_state_that_makes_no_sense_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(SpecError):
        job(**wrong)


def test_more_time_than_a_table_holds_costs_no_more_and_keeps_nobody_waiting() -> None:
    """Ten hours of work, on a zone that has been up for ten; a table holds 40% of it as slack."""
    zone = replace(ZONE, age_s=10 * HOUR)
    expected = []
    for spare_h in (5, 20):
        all_s = (10 + spare_h) * HOUR
        state = job(
            work_left_s=10 * HOUR,
            time_left_s=all_s,
            horizon_s=all_s,
            changeover_s=60.0,
            tick_s=15.0,
            zones=(zone,),
        )
        decision = POLICY.decide(state)
        assert decision.action is Runs.SPOT, decision.why
        assert decision.expected_usd is not None
        expected.append(decision.expected_usd)
    assert all(more <= less * 1.01 for less, more in itertools.pairwise(expected)), expected


def short_job(
    work_s: float, time_left_s: float, horizon_h: float, **zone: object
) -> JobMarketState:
    """Seconds of work at the end of a long horizon, for which a step of the table is minutes."""
    return job(
        work_left_s=work_s,
        time_left_s=time_left_s,
        horizon_s=horizon_h * HOUR,
        changeover_s=30.0,
        tick_s=15.0,
        zones=(replace(ZONE, **zone),),
    )


@pytest.mark.parametrize("horizon_h", [2, 24, 72])
@pytest.mark.parametrize("work_s", [5.0, 30.0, 120.0])
def test_short_work_with_an_hour_to_spare_waits_for_spot(work_s: float, horizon_h: int) -> None:
    for age_s in (0.0, 600.0, 7200.0):
        down = short_job(work_s, HOUR, horizon_h, up=False, age_s=age_s)
        assert POLICY.decide(down).action is Runs.IDLE, POLICY.decide(down).why
        up = POLICY.decide(replace(down, zones=(replace(ZONE, age_s=age_s),)))
        assert up.action is Runs.SPOT, up.why


@pytest.mark.parametrize("horizon_h", [2, 24])
@pytest.mark.parametrize("work_s", [5.0, 30.0, 120.0])
def test_short_work_without_spot_goes_on_demand_in_time(work_s: float, horizon_h: int) -> None:
    """Spot stays down: the wait ends with more than one changeover left and fewer than forty."""
    time_left_s = HOUR
    while True:
        state = short_job(work_s, time_left_s, horizon_h, up=False, age_s=HOUR - time_left_s)
        decision = POLICY.decide(state)
        if decision.action is not Runs.IDLE:
            break
        time_left_s -= state.tick_s
    assert decision.action is Runs.ON_DEMAND and decision.late_s == 0.0
    assert state.changeover_s < time_left_s - work_s < 40 * state.changeover_s


@pytest.mark.parametrize("up", [True, False])
@pytest.mark.parametrize("work_s", [30.0, 100.0, 400.0, 1500.0])
def test_what_is_expected_hangs_little_on_the_step_of_the_table(work_s: float, up: bool) -> None:
    fine, coarse = (
        POLICY.decide(short_job(work_s, work_s + 3000.0, h, up=up, age_s=700.0)).expected_usd
        for h in (2, 24)
    )
    assert fine is not None and coarse == pytest.approx(fine, rel=0.05)


def test_tables_are_shared_and_bounded() -> None:
    policy = DeadlinePolicy(tables=1)
    keys = [
        TableKey(step_s=600.0, changeover_s=d, price_ratio=3.0, hazards=PRIOR) for d in (0.0, 600.0)
    ]
    first = policy.table(keys[0])
    assert policy.table(keys[0]) is first
    policy.table(keys[1])
    assert policy.table(keys[0]) is not first


TABLE = solve(TableKey(step_s=600.0, changeover_s=720.0, price_ratio=3.0, hazards=PRIOR))


def test_less_work_never_costs_more() -> None:
    for value in (TABLE.up, TABLE.down):
        assert (value[:, 1:, :, 1:] <= value[:, 1:, :, :-1] + 1e-2).all()


def test_a_running_instance_is_worth_no_more_than_the_start_it_saves() -> None:
    left, slack = 300, 40.0
    for bin_ in range(BINS):
        cost = {a: TABLE.cost(a, up=True, steps_left=left, slack=slack, bin_=bin_) for a in After}
        assert cost[After.SPOT_STAY] <= cost[After.SPOT_START] + 1e-3
        assert cost[After.ON_DEMAND_STAY] <= cost[After.ON_DEMAND_START] + 1e-3


def test_the_table_ends_flat_and_finite_outside_its_lattice() -> None:
    for after, up in itertools.product((After.IDLE, After.ON_DEMAND_STAY), (True, False)):
        low = TABLE.cost(after, up=up, steps_left=STEPS + 50, slack=SLACK_STEPS + 99.0, bin_=0)
        assert 0.0 < low < 3.0 * STEPS


def test_dear_on_demand_makes_the_table_wait_longer() -> None:
    """With much slack and spot down, a dear market waits where an even one does not."""
    even = DeadlinePolicy().decide(
        job(zones=(replace(ZONE, up=False),), on_demand_usd_per_hour=1.0, time_left_s=70 * HOUR)
    )
    dear = DeadlinePolicy().decide(
        job(zones=(replace(ZONE, up=False),), on_demand_usd_per_hour=9.0, time_left_s=70 * HOUR)
    )
    assert dear.action is Runs.IDLE and even.expected_usd is not None
    assert dear.expected_usd is not None and dear.expected_usd > even.expected_usd
