"""Many jobs on one recorded market at once: what a choice costs and brings. Pure: numpy only.

    lanes = Lanes(jobs, rules)
    lanes.advance(rows, tick, runs, zone)      # one tick for the jobs in `rows`

A lane is one job. Each tick it is idle, on spot in a zone, or on-demand. A start first pays the
changeover, at the price of what was started; then the tick's rest is work. The last tick is paid as
far as it was needed.

Knows no policy. Progress is not lost with an instance: checkpoints are the changeover's part.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rayburst.errors import DataError

IDLE, SPOT, ON_DEMAND = 0, 1, 2

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

_EPS_S = 1e-6


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """The terms of the jobs, as in the experiments of "Can't Be Late" (NSDI'24).

    Attributes:
        work_s: compute that a job needs.
        changeover_s: time that every start costs.
        price_ratio: on-demand price over spot price.
        tick_s: seconds between readings.
    """

    work_s: float
    changeover_s: float
    price_ratio: float
    tick_s: float

    def __post_init__(self) -> None:
        if min(self.work_s, self.tick_s) <= 0 or self.changeover_s < 0 or self.price_ratio < 1:
            raise DataError(
                f"work {self.work_s} s, tick {self.tick_s} s, changeover {self.changeover_s} s, "
                f"price ratio {self.price_ratio}: work and tick must be above 0, the changeover "
                "0 or more, the ratio 1 or more"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Jobs:
    """Jobs that start at given ticks of a market, each with its deadline. Arrays of one length.

    Attributes:
        start: first tick of each job.
        allowed_s: time from start to deadline; infinite for a job without one, which only the
            planner's own replay knows.
    """

    start: Ints
    allowed_s: Floats


class Lanes:
    """The state of every job, advanced tick by tick."""

    def __init__(self, jobs: Jobs, rules: Rules):
        n = len(jobs.start)
        self.jobs, self.rules = jobs, rules
        self.left_s: Floats = np.full(n, rules.work_s)
        self.owed_s: Floats = np.zeros(n)
        self.runs: Ints = np.zeros(n, np.int64)
        self.zone: Ints = np.full(n, -1, np.int64)
        self.cost: Floats = np.zeros(n)
        self.end_s: Floats = np.full(n, np.inf)
        self.starts: Ints = np.zeros(n, np.int64)
        self.spot_s: Floats = np.zeros(n)
        self.on_demand_s: Floats = np.zeros(n)

    def active(self, tick: int) -> Ints:
        """Lanes that have begun and are not done."""
        return np.flatnonzero((self.jobs.start <= tick) & (self.left_s > _EPS_S))

    def lose(self, rows: Ints, up: Bools) -> None:
        """Take spot away from lanes whose zone is down now. `up` has one value a zone."""
        lost = rows[(self.runs[rows] == SPOT) & ~up[self.zone[rows]]]
        self.runs[lost], self.zone[lost], self.owed_s[lost] = IDLE, -1, 0.0

    def time_left_s(self, rows: Ints, tick: int) -> Floats:
        """Seconds from this tick to the deadline."""
        passed = (tick - self.jobs.start[rows]) * self.rules.tick_s
        return self.jobs.allowed_s[rows] - passed

    def advance(self, rows: Ints, tick: int, runs: Ints, zone: Ints) -> None:
        """Run one tick: `runs` and `zone` (-1 unless on spot) are what each of `rows` does."""
        rules = self.rules
        fresh = (runs != IDLE) & ((runs != self.runs[rows]) | (zone != self.zone[rows]))
        owed = np.where(fresh, rules.changeover_s, np.where(runs == IDLE, 0.0, self.owed_s[rows]))
        paid = np.where(runs == IDLE, 0.0, np.minimum(owed, rules.tick_s))
        work = np.where(runs == IDLE, 0.0, np.minimum(rules.tick_s - paid, self.left_s[rows]))
        used = paid + work
        left = self.left_s[rows] - work
        ended = left <= _EPS_S
        passed = (tick - self.jobs.start[rows]) * rules.tick_s
        self.end_s[rows[ended]] = (passed + used)[ended]
        self.left_s[rows], self.owed_s[rows] = np.where(ended, 0.0, left), owed - paid
        self.runs[rows], self.zone[rows] = runs, zone
        self.starts[rows] += fresh
        self.spot_s[rows] += np.where(runs == SPOT, used, 0.0)
        self.on_demand_s[rows] += np.where(runs == ON_DEMAND, used, 0.0)
        self.cost[rows] += used * np.where(runs == ON_DEMAND, rules.price_ratio, 1.0)

    @property
    def missed(self) -> Bools:
        """Which jobs ended after their deadline, or not at all."""
        return self.end_s > self.jobs.allowed_s + _EPS_S

    @property
    def cost_ratio(self) -> Floats:
        """Cost over the cost of the same work on-demand without a changeover."""
        return self.cost / (self.rules.work_s * self.rules.price_ratio)
