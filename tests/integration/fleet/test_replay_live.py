"""The planner in replay: blind to the future, never late, steady; gangs; several zones."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayburst.fleet.deadline import DeadlinePolicy
from rayburst.fleet.hazards import pooled_prior
from rayburst.fleet.recorded import RECORDED
from rayburst.fleet.replay import baselines, planned
from rayburst.fleet.replay.lanes import Jobs, Lanes, Rules
from rayburst.fleet.replay.live import LivePolicy
from rayburst.fleet.replay.planned import ROUNDS, Fleet, play_planned
from rayburst.fleet.replay.play import market, play
from rayburst.fleet.replay.traces import ZoneTrace
from rayburst.fleet.view import ActionKind

PRIOR = pooled_prior(RECORDED)
SHARED = DeadlinePolicy(tables=8)
TERMS = Rules(work_s=24 * 600.0, changeover_s=300.0, price_ratio=3.0, tick_s=600.0)
JOBS = Jobs(start=np.array([0, 5]), allowed_s=np.array([44 * 600.0, 30 * 600.0]))
TICKS = 50

Log = list[tuple[float, float, tuple[str, ...]]]
"""(time, start of the job, the pools it trains on from then)."""


class Replayed:
    """A replay whose every tick is noted, and what every plan said."""

    def __init__(
        self, *counts: list[int], nodes: int = 1, jobs: Jobs = JOBS, every_tick: bool = False
    ) -> None:
        self.log: Log = []
        self.kinds: set[ActionKind] = set()
        self.most_plans = 0
        traces = [
            ZoneTrace(trace_set="made", name=f"z{i}", tick_s=600.0, count=np.array(count))
            for i, count in enumerate(counts)
        ]
        noted = self

        class Spy(Fleet):
            def tick(self) -> None:
                super().tick()
                pools = tuple(sorted(self.hosts[h].pool for h in self.runs))
                noted.log.append((self.replay.now_s, self.start_s, pools))
                noted.most_plans = max(noted.most_plans, len(self.plans))
                noted.kinds |= {a.kind for a in self.actions() if a.why}
                assert all(a.why for a in self.actions()), "every action has its reason"

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(planned, "Fleet", Spy)
            self.lanes = play_planned(
                traces,
                nodes=nodes,
                jobs=jobs,
                rules=TERMS,
                prior=PRIOR,
                policy=SHARED,
                every_tick=every_tick,
            )


def counts_up_to(nodes: int, ticks: int = TICKS) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(0, nodes), min_size=ticks, max_size=ticks)


@given(
    st.integers(1, 4).flatmap(
        lambda n: st.tuples(st.just(n), counts_up_to(n), counts_up_to(n), st.integers(0, TICKS - 1))
    )
)
@settings(max_examples=40, deadline=None)
def test_no_decision_depends_on_a_later_reading(
    given_: tuple[int, list[int], list[int], int],
) -> None:
    nodes, before, after, tick = given_
    changed = [*before[: tick + 1], *after[tick + 1 :]]
    one, other = Replayed(before, nodes=nodes), Replayed(changed, nodes=nodes)
    known = tick * 600.0
    assert [e for e in one.log if e[0] <= known] == [e for e in other.log if e[0] <= known]


@given(st.integers(1, 4).flatmap(lambda n: st.tuples(st.just(n), counts_up_to(n), counts_up_to(n))))
@settings(max_examples=30, deadline=None)
def test_a_tick_without_a_plan_changes_nothing(given_: tuple[int, list[int], list[int]]) -> None:
    """Live spot for all workers is kept at every tick, so the planner is not asked."""
    nodes, *counts = given_
    few, all_ = (Replayed(*counts, nodes=nodes, every_tick=every) for every in (False, True))
    assert few.log == all_.log
    assert few.lanes.cost.tolist() == all_.lanes.cost.tolist()


@given(counts_up_to(1), st.integers(0, TICKS - 1))
@settings(max_examples=30, deadline=None)
def test_the_rates_of_a_decision_rest_on_readings_before_it(count: list[int], tick: int) -> None:
    """The reading at the decision says only what may be taken now; the rule was fixed before."""
    flipped = [*count[:tick], *(1 - n for n in count[tick:])]
    found = []
    for counts in (count, flipped):
        replay = planned.Replay(["z"], nodes=1, rules=TERMS, prior=PRIOR, policy=SHARED)
        for now in range(tick + 1):
            replay.read(now * 600.0, np.array([counts[now]]))
        found.append(replay.outlook.rates()["z"].hazards)
    assert found[0] == found[1]


@given(counts_up_to(1))
@settings(max_examples=50, deadline=None)
def test_no_deadline_is_missed_and_live_spot_is_kept(count: list[int]) -> None:
    replayed = Replayed(count)
    assert not replayed.lanes.missed.any()
    assert ActionKind.LATE not in replayed.kinds
    on_spot: set[float] = set()
    for now, job, pools in replayed.log:
        if job in on_spot and count[int(now // 600)]:
            assert pools == ("z0",)
        on_spot = (on_spot - {job}) | ({job} if pools == ("z0",) else set())


@given(st.lists(st.tuples(*[st.integers(0, 1)] * 2), min_size=TICKS, max_size=TICKS))
@settings(max_examples=40, deadline=None)
def test_the_planner_does_for_one_job_what_its_deadline_rule_says(ups: list[tuple]) -> None:
    """Pools, hosts, grants and moves around it change neither cost nor starts."""
    for counts in ([row[0] for row in ups],), tuple(zip(*ups, strict=True)):
        lanes = Replayed(*map(list, counts)).lanes
        up = np.array(counts, bool).T
        rule = LivePolicy(PRIOR, [f"z{i}" for i in range(len(counts))], policy=SHARED)
        alone = play(rule, up, np.ones_like(up), JOBS, TERMS)
        assert lanes.cost == pytest.approx(alone.cost)
        assert lanes.starts.tolist() == alone.starts.tolist()


def test_a_job_without_a_deadline_waits_for_spot_and_takes_nothing_else() -> None:
    patient = Jobs(start=np.array([0]), allowed_s=np.array([np.inf]))
    replayed = Replayed([1] * 10 + [0] * 20 + [1] * 20, jobs=patient)
    lanes = replayed.lanes
    assert lanes.on_demand_s[0] == 0 and not lanes.missed[0]
    assert lanes.starts[0] == 2 and lanes.end_s[0] == 24 * 600 + 2 * 300 + 20 * 600


@pytest.mark.parametrize("nodes", [1, 4])
@pytest.mark.parametrize("up", [0, 1])
def test_a_market_that_never_changes_causes_no_oscillation(up: int, nodes: int) -> None:
    assert (Replayed([up * nodes] * TICKS, nodes=nodes).lanes.starts == 1).all()


@given(st.lists(st.tuples(*[st.integers(0, 1)] * 3), min_size=TICKS, max_size=TICKS))
@settings(max_examples=15, deadline=None)
def test_several_zones_are_never_late_and_never_used_while_down(ups: list[tuple]) -> None:
    counts = [list(zone) for zone in zip(*ups, strict=True)]
    replayed = Replayed(*counts)
    assert not replayed.lanes.missed.any()
    for now, _, pools in replayed.log:
        used = [pool for pool in pools if "on-demand" not in pool]
        assert all(counts[int(pool[1:])][int(now // 600)] for pool in used)


@given(counts_up_to(8))
@settings(max_examples=60, deadline=None)
def test_a_gang_is_never_late_and_never_has_more_than_there_is(count: list[int]) -> None:
    replayed = Replayed(count, nodes=8)
    assert not replayed.lanes.missed.any()
    assert (replayed.lanes.cost_ratio > 0).all()
    assert replayed.most_plans < ROUNDS, "the plans of one tick come to an end"
    for now, _, pools in replayed.log:
        assert pools.count("z0") <= count[int(now // 600)]
        assert len(pools) <= 8


def whole_or_nothing(count: list[int], nodes: int) -> Lanes:
    trace = ZoneTrace(trace_set="made", name="z0", tick_s=600.0, count=np.array(count))
    up, known = market([trace], nodes=nodes)
    return play(baselines.uniform_progress(keeps_on_demand=True), up, known, JOBS, TERMS)


def test_a_gang_that_shrinks_beats_one_that_needs_all_its_nodes() -> None:
    count = [8] * 10 + [7] * 40
    parts = Replayed(count, nodes=8).lanes
    assert not parts.missed.any()
    assert parts.cost_ratio.mean() < 0.8 * whole_or_nothing(count, 8).cost_ratio.mean()


def test_a_gang_in_a_hurry_has_on_demand_beside_its_spot() -> None:
    """Seven of eight all the time, and no time for seven alone: the eighth is on-demand."""
    hurry = Jobs(start=np.array([0]), allowed_s=np.array([26.5 * 600.0]))
    replayed = Replayed([7] * TICKS, nodes=8, jobs=hurry)
    assert not replayed.lanes.missed.any()
    assert replayed.log[0][2] == ("z0",) * 7 + ("z0 on-demand",)
    assert replayed.lanes.starts[0] == 1
    assert replayed.lanes.cost[0] == pytest.approx((24 * 600 + 300) * (7 + TERMS.price_ratio) / 8)


def test_a_gang_that_is_always_whole_costs_what_a_single_job_does() -> None:
    parts = Replayed([8] * TICKS, nodes=8).lanes
    assert parts.cost_ratio == pytest.approx(Replayed([1] * TICKS).lanes.cost_ratio)
