"""How often a forecast's interval held what then happened, on recorded spot markets. Pure.

    rows = check(trace, needs, terms, prior=prior, every_s=36 * 3600.0)

At each start the zone's past, and nothing later, makes a belief; the forecast is drawn from it;
then the job is played through what was recorded. A forecast that is right holds COVERS of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from rayburst.cost.forecast import Forecast, JobNeeds, Terms, forecast
from rayburst.errors import DataError
from rayburst.fleet.deadline import DeadlinePolicy
from rayburst.fleet.hazards import Hazards, ZoneRecord
from rayburst.fleet.replay.futures import Belief, Each, by_deadline, play_each, spot_only
from rayburst.fleet.replay.lanes import Rules
from rayburst.fleet.replay.traces import UNKNOWN, ZoneTrace

_FOLLOWED = 6.0  # times the work: as long as a forecast looks ahead


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One forecast against what happened. Hours may be infinite: it did not end in the time."""

    zone: str
    start_s: float
    option: str
    told: Forecast
    hours: float
    usd: float

    @property
    def is_hours_held(self) -> bool:
        span = self.told.option(self.option).hours
        return span is not None and span.low - 1e-6 <= self.hours <= span.high + 1e-6

    @property
    def is_usd_held(self) -> bool:
        span = self.told.option(self.option).usd
        return span is not None and span.low - 1e-6 <= self.usd <= span.high + 1e-6


def belief_of(record: ZoneRecord) -> Belief:
    """What a zone's past supports, and how it stands now."""
    down, up = record.counts("zone").ends
    return Belief(
        hazards=record.hazards(), ends=(sum(down), sum(up)), up=record.up, age_s=record.age_s
    )


def check(
    trace: ZoneTrace,
    needs: JobNeeds,
    terms: Terms,
    *,
    prior: Hazards,
    every_s: float,
    paths: int = 60,
    thin: int = 1,
) -> Iterator[Check]:
    """Forecast and truth at a start every `every_s`; `thin` takes one reading of so many."""
    if needs.deadline_s is None:
        raise DataError("a check needs a job with a deadline")
    count, tick_s = trace.count[::thin], trace.tick_s * thin
    record = ZoneRecord(prior)
    every = max(1, round(every_s / tick_s))
    ahead = math.ceil(_FOLLOWED * needs.work_s / tick_s)
    for tick in range(len(count) - ahead):
        if count[tick] != UNKNOWN:
            record.observe(tick * tick_s, bool(count[tick]))
        seen = count[tick : tick + ahead]
        if tick and tick % every == 0 and (seen != UNKNOWN).all():
            belief = belief_of(record)
            rng = np.random.default_rng(tick)
            told = forecast(needs, terms, belief, rng=rng, paths=paths, tick_s=tick_s)
            for option in ("spot", "mixed"):
                hours, usd = _truth(option, needs, terms, belief, seen >= 1, tick_s)
                yield Check(
                    zone=trace.name,
                    start_s=tick * tick_s,
                    option=option,
                    told=told,
                    hours=hours,
                    usd=usd,
                )


def _truth(
    option: str, needs: JobNeeds, terms: Terms, belief: Belief, up: np.ndarray, tick_s: float
) -> tuple[float, float]:
    spot, listed = terms.spot_usd_per_hour or 1.0, terms.on_demand_usd_per_hour or 1.0
    rules = Rules(
        work_s=needs.work_s,
        changeover_s=needs.changeover_s,
        price_ratio=listed / spot,
        tick_s=tick_s,
    )
    policy: Each = spot_only
    allowed_s = math.inf
    if option == "mixed":
        policy, allowed_s = by_deadline(belief.hazards, DeadlinePolicy()), needs.deadline_s or 0.0
    lanes = play_each(policy, up[:, None], rules, allowed_s=allowed_s, age_s=belief.age_s)
    return float(lanes.end_s[0]) / 3600, float(lanes.cost[0]) / 3600 * spot * needs.nodes
