"""From what people have (a fleet file, a run log, a recorded zone) to a forecast's input. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rayburst.cost.coverage import belief_of
from rayburst.cost.forecast import JobNeeds, Terms
from rayburst.cost.measured import measured
from rayburst.errors import SpecError
from rayburst.fleet.hazards import ZoneRecord, pooled_prior
from rayburst.fleet.recorded import RECORDED
from rayburst.fleet.replay.futures import Belief
from rayburst.fleet.replay.traces import UNKNOWN, ZoneTrace
from rayburst.fleet.spec import FleetSpec, Market
from rayburst.fleet.units import duration_s, money_usd

_CHANGEOVER_S = 720.0


def terms_of(spec: FleetSpec) -> Terms:
    """The cheapest known price of each market, and how many on-prem hosts there are."""

    def cheapest(market: Market) -> float | None:
        prices = [
            pool.price_usd_per_hour
            for pool in spec.pools
            if pool.market is market and pool.price_usd_per_hour is not None
        ]
        return min(prices, default=None)

    return Terms(
        on_prem_usd_per_hour=cheapest(Market.ON_PREM),
        own_nodes=sum(pool.max_hosts for pool in spec.pools if pool.market is Market.ON_PREM),
        spot_usd_per_hour=cheapest(Market.SPOT),
        on_demand_usd_per_hour=cheapest(Market.ON_DEMAND),
    )


def needs_of(work: str | None, changeover: str | None) -> JobNeeds:
    """Needs as people write them. Raises SpecError without `work`."""
    if work is None:
        raise SpecError("how much work is it? give --work 48h, or a run and its --steps")
    changeover_s = _CHANGEOVER_S if changeover is None else duration_s(changeover)
    return JobNeeds(work_s=duration_s(work), changeover_s=changeover_s)


def measured_needs(
    records: Sequence[Mapping[str, Any]],
    *,
    run: str,
    steps: int | None,
    work: str | None = None,
    changeover: str | None = None,
) -> JobNeeds:
    """Needs of the rest of a run; what is given stands above what was measured.

    Raises:
        SpecError: neither `steps` nor `work` is given, or the run is done.
    """
    seen = measured(records)
    if work is None and steps is None:
        raise SpecError(f"run {run} is at step {seen.step}: how many is it to do? give --steps")
    work_s = duration_s(work) if work is not None else seen.work_left_s(steps or 0)
    if work_s <= 0:
        raise SpecError(f"run {run} is at step {seen.step} and has nothing left to do")
    changeover_s = seen.changeover_s if changeover is None else duration_s(changeover)
    return JobNeeds(work_s=work_s, changeover_s=changeover_s)


def limited(needs: JobNeeds, *, nodes: int, deadline: str | None, budget: str | None) -> JobNeeds:
    """The same work on so many nodes, with a deadline ("60h") and a budget ("120 USD")."""
    return replace(
        needs,
        nodes=nodes,
        deadline_s=None if deadline is None else duration_s(deadline),
        budget_usd=None if budget is None else money_usd(budget),
    )


def believe(trace: ZoneTrace | None) -> Belief:
    """What a recorded zone teaches; without one, eight zones that were recorded elsewhere."""
    prior = pooled_prior(RECORDED)
    if trace is None:
        return Belief(hazards=prior)
    record = ZoneRecord(pooled_prior(RECORDED, without=[trace.name]), refresh_s=trace.tick_s)
    for tick, count in enumerate(trace.count.tolist()):
        if count != UNKNOWN:
            record.observe(tick * trace.tick_s, count >= 1)
    return belief_of(record)
