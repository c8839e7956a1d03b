"""Baselines tick by tick, and the omniscient programme against every plan there is."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayburst.errors import DataError
from rayburst.fleet.replay import baselines
from rayburst.fleet.replay.lanes import IDLE, ON_DEMAND, SPOT, Jobs, Lanes, Rules
from rayburst.fleet.replay.omniscient import omniscient
from rayburst.fleet.replay.play import play

TICK_S = 600.0


def rules(work: float, changeover_s: float, price_ratio: float = 3.0) -> Rules:
    return Rules(
        work_s=work * TICK_S, changeover_s=changeover_s, price_ratio=price_ratio, tick_s=TICK_S
    )


def one_job(allowed: float) -> Jobs:
    return Jobs(start=np.array([0]), allowed_s=np.array([allowed * TICK_S]))


def brute_force(up: np.ndarray, allowed: int, terms: Rules) -> float:
    """The cheapest of all sequences of choices that meet the deadline, played one by one."""
    zones = up.shape[1]
    plans = np.array(list(itertools.product(range(2 + zones), repeat=allowed)))
    jobs = Jobs(
        start=np.zeros(len(plans), int), allowed_s=np.full(len(plans), allowed * terms.tick_s)
    )
    lanes = Lanes(jobs, terms)
    for tick in range(allowed):
        rows = lanes.active(tick)
        lanes.lose(rows, up[tick])
        choice = plans[rows, tick]
        zone = np.where(choice >= 2, choice - 2, -1)
        possible = (choice < 2) | up[tick][np.maximum(zone, 0)]
        runs = np.where(choice >= 2, SPOT, np.where(choice == 1, ON_DEMAND, IDLE))
        runs = np.where(possible, runs, IDLE)
        lanes.advance(rows, tick, runs, np.where(runs == SPOT, zone, -1))
    return float(lanes.cost_ratio[~lanes.missed].min())


@given(
    up=st.lists(st.tuples(st.booleans()), min_size=7, max_size=7),
    changeover_s=st.sampled_from([0.0, 300.0, 600.0, 900.0]),
    work=st.sampled_from([1, 2, 3.5]),
)
@settings(max_examples=60, deadline=None)
def test_omniscient_is_the_best_plan_of_one_zone(
    up: list[tuple[bool]], changeover_s: float, work: float
) -> None:
    market, terms = np.array(up), rules(work, changeover_s)
    assert omniscient(market, one_job(7), terms)[0] == pytest.approx(
        brute_force(market, 7, terms), rel=1e-5
    )


@given(
    up=st.lists(st.tuples(st.booleans(), st.booleans()), min_size=6, max_size=6),
    changeover_s=st.sampled_from([300.0, 900.0]),
)
@settings(max_examples=40, deadline=None)
def test_omniscient_is_the_best_plan_of_two_zones(
    up: list[tuple[bool, bool]], changeover_s: float
) -> None:
    market, terms = np.array(up), rules(2.5, changeover_s)
    assert omniscient(market, one_job(6), terms)[0] == pytest.approx(
        brute_force(market, 6, terms), rel=1e-5
    )


@given(
    up=st.lists(st.booleans(), min_size=40, max_size=40),
    changeover_s=st.sampled_from([0.0, 300.0, 720.0]),
)
@settings(max_examples=30, deadline=None)
def test_no_baseline_beats_omniscient_or_misses(up: list[bool], changeover_s: float) -> None:
    market, terms = np.array(up)[:, None], rules(20, changeover_s)
    best = omniscient(market, one_job(40), terms)[0]
    for chooser in (
        baselines.uniform_progress(keeps_on_demand=True),
        baselines.uniform_progress(keeps_on_demand=False),
        baselines.greedy,
        baselines.on_demand,
    ):
        lanes = play(chooser, market, np.ones_like(market), one_job(40), terms)
        assert not lanes.missed.any()
        assert lanes.cost_ratio[0] >= best - 1e-5


def played(chooser: baselines.Chooser, up: list[int], allowed: float, terms: Rules) -> str:
    """What the job did at each tick, as letters."""
    done = []

    def spy(lanes: Lanes, rows: np.ndarray, tick: int, now: np.ndarray) -> tuple:
        runs, zone = chooser(lanes, rows, tick, now)
        done.append("-SD"[runs[0]])
        return runs, zone

    market = np.array(up, bool)[:, None]
    play(spy, market, np.ones_like(market), one_job(allowed), terms)
    return "".join(done)


def test_uniform_progress_by_hand() -> None:
    """4 ticks of work in 12, no changeover: even pace is a third of a tick for each tick.

    Tick 0 is on pace, so it waits; tick 1 is behind, so it goes on-demand and is ahead at tick 2.
    """
    terms = rules(4, 0.0)
    up = [0, 0, 0, 0, 0, 0, 1, 1, 1, 0, 0, 0]
    keeps = played(baselines.uniform_progress(keeps_on_demand=True), up, 12, terms)
    stops = played(baselines.uniform_progress(keeps_on_demand=False), up, 12, terms)
    assert keeps == "-DDDD"
    assert stops == "-D--D-SS"
    assert played(baselines.greedy, up, 12, terms) == "------SSS--D"
    assert played(baselines.on_demand, up, 12, terms) == "DDDD"


def test_a_lost_instance_pays_its_changeover_again() -> None:
    terms = rules(2, 300.0)
    market = np.array([1, 0, 1, 1, 1, 1], bool)[:, None]
    lanes = play(baselines.greedy, market, np.ones_like(market), one_job(6), terms)
    assert lanes.starts[0] == 2
    assert lanes.end_s[0] == 2 * 600 + 300 + 900
    assert lanes.cost[0] == pytest.approx(600 + 300 + 900)


def test_a_deadline_beyond_the_recording_is_refused() -> None:
    with pytest.raises(DataError, match="after the end"):
        omniscient(np.ones((5, 1), bool), one_job(7), rules(2, 0.0))


def test_terms_that_make_no_sense_are_refused() -> None:
    with pytest.raises(DataError, match="price ratio"):
        rules(2, 0.0, price_ratio=0.5)
