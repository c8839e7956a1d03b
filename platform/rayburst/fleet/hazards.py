"""How likely a spot zone is to change, by how long it has been up or down. Pure: numpy only.

    record = ZoneRecord(prior=pooled_prior(RECORDED))
    record.observe(now_s=0.0, up=True)
    record.observe(now_s=600.0, up=True)
    record.hazards().up      # chance a second that the zone goes down, by age bin

A zone is up (an instance can be had and kept) or down. Both kinds of run end early or last long, so
one rate is not enough: rates are kept by the age of the run. A new zone starts from what was
recorded elsewhere (the prior); its own past takes over as it grows.

Knows no clock and no cloud: `observe` is told the time. Nothing here is fitted to one zone.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from rayburst.errors import DataError

AGE_EDGES_S = (0.0, 600.0, 1200.0, 1800.0, 3000.0, 4800.0, 7200.0, 10800.0, 18000.0, 32400.0)
"""Where an age bin begins, in seconds since the first reading of a run; the last bin is open."""

BINS = len(AGE_EDGES_S)

PRIOR_EVENTS = 4.0
"""How many ends of runs, in one age bin, weigh as much as the prior of that bin."""

ZONE_EVENTS = 4.0
"""How many ends of runs, over all bins, weigh as much as the prior level of a zone."""

REFRESH_S = 12 * 3600.0
"""How often a zone's rates are counted anew; a change of rates makes a new slack table."""

_CERTAIN = 0.99  # a bin in which every run ended so far is still not certain to end

Floats = npt.NDArray[np.float64]


def age_bin(age_s: float) -> int:
    """The index of the age bin that holds `age_s` (0 for a run seen for the first time now)."""
    return bisect_right(AGE_EDGES_S, age_s + 1e-6) - 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Hazards:
    """Rates (per second) at which a zone's run ends, by age bin; hashable, a key of tables."""

    up: tuple[float, ...]
    down: tuple[float, ...]

    def expected_up_s(self, age_s: float) -> float:
        """Mean time that an up run of this age still lasts, in seconds."""
        return _expected_up_s(self.up, age_s)


@lru_cache(maxsize=4096)  # the jobs of one plan ask the same of the same zones
def _expected_up_s(up: tuple[float, ...], age_s: float) -> float:
    first, left, alive = age_bin(age_s), 0.0, 1.0
    for index in range(first, BINS):
        rate = up[index]
        if index == BINS - 1:
            return left + alive / rate
        width = AGE_EDGES_S[index + 1] - max(age_s, AGE_EDGES_S[index])
        stays = math.exp(-rate * width)
        left += alive * (1.0 - stays) / rate
        alive *= stays
    return left


@dataclass(frozen=True, kw_only=True, slots=True)
class RunCounts:
    """What was counted of one zone: readings and ends of runs by age bin, [down, up].

    Attributes:
        zone: name of the zone, such as `us-east-1c_v100_1`.
        tick_s: seconds between readings.
        readings: pairs of readings in which the run could have ended; shape [2][BINS].
        ends: how many of them saw it end; shape [2][BINS].
    """

    zone: str
    tick_s: float
    readings: tuple[tuple[float, ...], tuple[float, ...]]
    ends: tuple[tuple[float, ...], tuple[float, ...]]


def pooled_prior(counts: Iterable[RunCounts], *, without: Sequence[str] = ()) -> Hazards:
    """Rates pooled over zones, leaving out the zones named in `without`.

    Raises:
        DataError: no zone is left.
    """
    kept = [c for c in counts if c.zone not in without]
    if not kept:
        raise DataError(
            f"no recorded zone is left for a prior after leaving out {', '.join(without)}; "
            "leave out fewer zones"
        )
    ends = np.zeros((2, BINS))
    exposure_s = np.zeros((2, BINS))
    for zone in kept:
        e, n = np.array(zone.ends, float), np.array(zone.readings, float)
        chance = (e + 0.5) / (n + 1.0)
        rate = -np.log1p(-np.minimum(chance, _CERTAIN)) / zone.tick_s
        ends += e + 0.5
        exposure_s += (e + 0.5) / rate
    down, up = (ends / exposure_s).tolist()
    return Hazards(up=tuple(up), down=tuple(down))


class ZoneRecord:
    """One zone's own past, reading by reading, and the rates that it supports.

    Required: `observe` with times that only grow. A reading later than `gap_s` after the one
    before it starts a new run, because nothing is known of the time between.
    """

    def __init__(self, prior: Hazards, *, gap_s: float = 3600.0, refresh_s: float = REFRESH_S):
        self._prior = prior
        self._gap_s = gap_s
        self._refresh_s = refresh_s
        self._readings = np.zeros((2, BINS))
        self._exposure_s = np.zeros((2, BINS))
        self._ends = np.zeros((2, BINS))
        self._run_began_s = 0.0
        self._seen_s: float | None = None
        self._up = False
        self._counted_s: float | None = None
        self._hazards = prior

    @property
    def up(self) -> bool:
        """What the last reading said."""
        return self._up

    @property
    def age_s(self) -> float:
        """Seconds from the first reading of the present run to the last reading."""
        return 0.0 if self._seen_s is None else self._seen_s - self._run_began_s

    def observe(self, now_s: float, up: bool) -> None:
        """Take one reading. Rates are renewed first, so that they rest on earlier readings only."""
        self._renew(now_s)
        if self._seen_s is None or now_s - self._seen_s > self._gap_s:
            self._run_began_s = now_s
        else:
            step_s = now_s - self._seen_s
            index = int(self._up), age_bin(self.age_s)
            self._readings[index] += 1
            self._exposure_s[index] += step_s
            if up != self._up:
                self._ends[index] += 1
                self._run_began_s = now_s
        self._seen_s, self._up = now_s, up

    def hazards(self) -> Hazards:
        """The rates as of the last renewal; the same object until the next."""
        return self._hazards

    def counts(self, zone: str) -> RunCounts:
        """What was counted so far, to be shipped as a prior."""
        total = self._readings.sum()
        return RunCounts(
            zone=zone,
            tick_s=float(self._exposure_s.sum() / total) if total else 1.0,
            readings=(tuple(self._readings[0].tolist()), tuple(self._readings[1].tolist())),
            ends=(tuple(self._ends[0].tolist()), tuple(self._ends[1].tolist())),
        )

    def _renew(self, now_s: float) -> None:
        if self._counted_s is None:
            self._counted_s = now_s
        elif now_s - self._counted_s >= self._refresh_s:
            self._counted_s = now_s
            self._hazards = estimate(self._prior, self._readings, self._exposure_s, self._ends)


def estimate(prior: Hazards, readings: Floats, exposure_s: Floats, ends: Floats) -> Hazards:
    """Rates of one zone: the prior, its level moved by the zone's own count of ends, bins likewise.

    Two steps of the same kind (gamma with the prior's mean): first one factor for all up bins and
    one for all down bins, which a day of readings settles; then every bin by itself.
    """
    rates = np.array([prior.down, prior.up])
    expected = (rates * exposure_s).sum(axis=1)
    level = (ends.sum(axis=1) + ZONE_EVENTS) / (expected + ZONE_EVENTS)
    tick_s = np.where(readings > 0, exposure_s / np.maximum(readings, 1.0), 1.0)
    before = -np.expm1(-rates * level[:, None] * tick_s)
    chance = (ends + PRIOR_EVENTS) / (readings + PRIOR_EVENTS / before)
    after = -np.log1p(-np.minimum(chance, _CERTAIN)) / tick_s
    down, up = np.where(readings > 0, after, rates * level[:, None]).tolist()
    return Hazards(up=tuple(up), down=tuple(down))
