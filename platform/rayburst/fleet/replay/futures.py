"""Made-up futures of one spot zone, and a job played through each of them. Pure: numpy only.

    up = futures(belief, ticks=900, tick_s=600.0, paths=100, rng=np.random.default_rng(0))
    lanes = play_each(policy, up, rules, allowed_s=60 * 3600.0)
    lanes.end_s, lanes.cost

Each path begins with the zone as it is now and goes on by rates of its own:
what was counted, times a factor drawn from what that count leaves open (gamma, with the count of
ends as its shape). So a zone that was hardly seen has wide futures. Every path is a market of its
own with one job in it; the job is advanced by the same code that replays recordings (`lanes.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from rayburst.fleet.deadline import DeadlinePolicy
from rayburst.fleet.hazards import AGE_EDGES_S, ZONE_EVENTS, Hazards
from rayburst.fleet.job_state import JobMarketState, Runs, ZoneNow
from rayburst.fleet.replay.lanes import (
    IDLE,
    ON_DEMAND,
    SPOT,
    Bools,
    Floats,
    Ints,
    Jobs,
    Lanes,
    Rules,
)

Each = Callable[[Lanes, Ints, int, Bools, Floats], Ints]
"""(lanes, rows, tick, whether each row's zone is up, for how long) -> what each of them runs on."""

_RUNS = {IDLE: Runs.IDLE, SPOT: Runs.SPOT, ON_DEMAND: Runs.ON_DEMAND}
_CODES = {runs: code for code, runs in _RUNS.items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class Belief:
    """What is known of a zone at one moment.

    Attributes:
        ends: how many ends of (down, up) runs the rates rest on.
    """

    hazards: Hazards
    ends: tuple[float, float] = (0.0, 0.0)
    up: bool = True
    age_s: float = 0.0


def futures(
    belief: Belief, *, ticks: int, tick_s: float, paths: int, rng: np.random.Generator
) -> Bools:
    """Whether the zone is up, shape [ticks, paths]; row 0 is now."""
    rates = np.array([belief.hazards.down, belief.hazards.up])
    shape = np.array(belief.ends) + ZONE_EVENTS
    factor = rng.gamma(shape, 1.0 / shape, size=(paths, 2))
    edges = np.array(AGE_EDGES_S)
    state = np.full(paths, int(belief.up))
    age = np.full(paths, belief.age_s)
    up = np.empty((ticks, paths), bool)
    lane = np.arange(paths)
    for tick in range(ticks):
        up[tick] = state == 1
        bins = np.searchsorted(edges, age + 1e-6, side="right") - 1
        chance = -np.expm1(-rates[state, bins] * factor[lane, state] * tick_s)
        ends = rng.random(paths) < chance
        state = np.where(ends, 1 - state, state)
        age = np.where(ends, 0.0, age + tick_s)
    return up


def ages(up: Bools, tick_s: float, first_s: float = 0.0) -> Floats:
    """How long each zone has been as it is, at each tick; `first_s` at the first."""
    age = np.empty(up.shape)
    age[0] = first_s
    for tick in range(1, len(up)):
        age[tick] = np.where(up[tick] == up[tick - 1], age[tick - 1] + tick_s, 0.0)
    return age


def play_each(
    policy: Each, up: Bools, rules: Rules, *, allowed_s: float, age_s: float = 0.0
) -> Lanes:
    """One job in each column of `up`, from the first tick on; a job may only use its own column."""
    paths = up.shape[1]
    jobs = Jobs(start=np.zeros(paths, np.int64), allowed_s=np.full(paths, allowed_s))
    lanes = Lanes(jobs, rules)
    age = ages(up, rules.tick_s, age_s)
    for tick in range(len(up)):
        rows = lanes.active(tick)
        if not len(rows):
            break
        lanes.lose(rows, up[tick])
        runs = policy(lanes, rows, tick, up[tick][rows], age[tick][rows])
        lanes.advance(rows, tick, runs, np.where(runs == SPOT, rows, -1))
    return lanes


def spot_only(lanes: Lanes, rows: Ints, tick: int, up: Bools, age_s: Floats) -> Ints:
    """Spot whenever there is any, and nothing else, whatever the deadline."""
    return np.where(up, SPOT, IDLE)


def by_deadline(hazards: Hazards, policy: DeadlinePolicy) -> Each:
    """The live policy, with rates as they are believed now."""

    def choose(lanes: Lanes, rows: Ints, tick: int, up: Bools, age_s: Floats) -> Ints:
        left_s = lanes.time_left_s(rows, tick)
        runs = np.empty(len(rows), np.int64)
        for place, row in enumerate(rows.tolist()):
            state = _state(
                lanes, row, float(left_s[place]), bool(up[place]), float(age_s[place]), hazards
            )
            runs[place] = _CODES[policy.decide(state).action]
        return runs

    return choose


def _state(
    lanes: Lanes, row: int, time_left_s: float, up: bool, age_s: float, hazards: Hazards
) -> JobMarketState:
    rules, code = lanes.rules, int(lanes.runs[row])
    zone = ZoneNow(name="zone", up=up, age_s=age_s, usd_per_hour=1.0, hazards=hazards)
    return JobMarketState(
        work_left_s=float(lanes.left_s[row]),
        time_left_s=time_left_s,
        horizon_s=float(lanes.jobs.allowed_s[row]),
        changeover_s=rules.changeover_s,
        tick_s=rules.tick_s,
        zones=[zone],
        on_demand_usd_per_hour=rules.price_ratio,
        runs=_RUNS[code],
        owed_s=float(lanes.owed_s[row]),
        zone="zone" if code == SPOT else None,
    )
