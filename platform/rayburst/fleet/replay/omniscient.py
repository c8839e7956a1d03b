"""The least cost there could have been: an exact dynamic programme over the known market. Pure.

    costs = omniscient(up, jobs, rules)      # one number a job, over all-on-demand

Nothing can beat it: it sees every later tick. A state is (tick, slack, what runs and since when);
slack is time left minus work left minus changeover owed, on a lattice that divides the tick and the
changeover, so nothing is rounded but the deadline (down to the lattice, where no plan can use the
rest). Leaving an instance, or losing it, gives back what of its changeover was not paid yet.

Knows no policy. Too slow for a fleet; it is a yardstick.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rayburst.errors import DataError
from rayburst.fleet.replay.lanes import Bools, Floats, Jobs, Rules

Values = npt.NDArray[np.float32]

_FINEST_S = 1.0
_NEVER = np.float32(1e9)
_CELLS = 400_000  # values of one array handled at once: small enough for the processor's cache


def omniscient(up: Bools, jobs: Jobs, rules: Rules) -> Floats:
    """Least cost of every job over all-on-demand.

    Args:
        up: readings, shape [ticks, zones].

    Raises:
        DataError: tick, changeover and work share no lattice of at least a second.
    """
    lattice = _Lattice.of(rules)
    costs = np.empty(len(jobs.start))
    for allowed_s in np.unique(jobs.allowed_s):
        rows = np.flatnonzero(jobs.allowed_s == allowed_s)
        units = int(allowed_s / lattice.unit_s + 1e-9)
        chunk = max(1, _CELLS // max(units - lattice.work, 1))
        for at in range(0, len(rows), chunk):
            part = rows[at : at + chunk]
            costs[part] = _solve(up, jobs.start[part], units, lattice)
    return costs / (lattice.work * rules.price_ratio)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Lattice:
    """Tick, changeover and work in whole units, and what is owed after each tick of a run."""

    unit_s: float
    tick: int
    changeover: int
    work: int
    ratio: np.float32
    owed: tuple[int, ...]

    @staticmethod
    def of(rules: Rules) -> _Lattice:
        seconds = [rules.tick_s, rules.changeover_s, rules.work_s]
        if any(abs(s - round(s)) > 1e-6 for s in seconds):
            raise DataError(
                f"tick, changeover and work are {seconds} s; the omniscient yardstick needs whole "
                "seconds"
            )
        unit = math.gcd(*(round(s) for s in seconds))
        tick, changeover, work = (round(s) // unit for s in seconds)
        ages = max(1, -(-changeover // tick))
        owed = tuple(max(0, changeover - tick * age) for age in range(1, ages + 1))
        return _Lattice(
            unit_s=float(unit),
            tick=tick,
            changeover=changeover,
            work=work,
            ratio=np.float32(rules.price_ratio),
            owed=owed,
        )


@dataclass(slots=True)
class _Values:
    """Least cost to come at the start of a tick, shape [jobs, slack], by what ran before it.

    Attributes:
        free: nothing runs. `paid`: on-demand, by age. `spot`: by zone and age.
    """

    free: Values
    paid: list[Values]
    spot: list[list[Values]]


def _solve(up: Bools, start: npt.NDArray[np.int64], units: int, lattice: _Lattice) -> Floats:
    """Least cost in units at the spot price for jobs that start at `start` with `units` of time."""
    most = units - lattice.work
    if most < 0:
        raise DataError(f"{units} units of time for {lattice.work} of work: no plan ends in time")
    slack = np.arange(most + 1)
    ticks, ages = -(-units // lattice.tick), len(lattice.owed)
    if int(start.max()) + ticks > len(up):
        raise DataError("a job's deadline lies after the end of the recording; start it earlier")
    end = np.where(units - ticks * lattice.tick - slack <= 0, np.float32(0), _NEVER)
    last = np.repeat(end[None], len(start), axis=0).astype(np.float32)
    after = _Values(free=last, paid=[last] * ages, spot=[[last] * ages for _ in up[0]])
    for tick in range(ticks - 1, -1, -1):
        work = (units - tick * lattice.tick - slack).astype(np.float32)
        after = _step(after, work, up[start + tick], lattice)
    return after.free[:, most].astype(np.float64)


def _step(after: _Values, work: Values, here: Bools, lattice: _Lattice) -> _Values:
    """Values one tick earlier. `work` (owed included) by slack; `here` tells which zones are up."""
    go_on = np.clip(work, 0, lattice.tick)
    fresh = np.clip(work + lattice.changeover, 0, lattice.tick)
    done, ratio, old = work <= 0, lattice.ratio, range(len(lattice.owed))
    free = _spend(after.free, lattice.tick)
    np.minimum(free, ratio * fresh + _spend(after.paid[0], lattice.changeover), out=free)
    for zone, values in enumerate(after.spot):
        rows = np.flatnonzero(here[:, zone])
        begin = fresh + _spend(values[0][rows], lattice.changeover)
        free[rows] = np.minimum(free[rows], begin)
    free[:, done] = 0
    left = [_give_back(free, owed) for owed in lattice.owed]
    next_age = [min(age + 1, old[-1]) for age in old]
    paid = [np.minimum(ratio * go_on + after.paid[next_age[a]], left[a]) for a in old]
    spot = []
    for zone, values in enumerate(after.spot):
        lost = np.where(here[:, zone, None], np.float32(0), _NEVER)
        spot.append([np.minimum(go_on + values[next_age[a]] + lost, left[a]) for a in old])
    for kept in (*paid, *(v for of_zone in spot for v in of_zone)):
        kept[:, done] = 0
    return _Values(free=free, paid=paid, spot=spot)


def _spend(values: Values, units: int) -> Values:
    """Values at `slack - units`; out of reach below 0."""
    out = np.full_like(values, _NEVER)
    if units < values.shape[1]:
        out[:, units:] = values[:, : values.shape[1] - units]
    return out


def _give_back(values: Values, units: int) -> Values:
    """Values at `slack + units`; more slack than there ever was is worth no more."""
    if units == 0:
        return values
    out = np.empty_like(values)
    out[:, :-units] = values[:, units:]
    out[:, -units:] = values[:, -1:]
    return out
