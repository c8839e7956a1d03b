"""One job with a deadline and the spot market around it, as data. Pure.

`JobMarketState` is what a decision is made from, `Decision` what comes out (`deadline.py`). Two
questions that every rule asks of a state stand here too: where it lives, and how late it will be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from rayburst.errors import SpecError
from rayburst.fleet.hazards import Hazards


class Runs(StrEnum):
    """What a job runs on."""

    IDLE = "idle"
    SPOT = "spot"
    ON_DEMAND = "on-demand"


@dataclass(frozen=True, kw_only=True, slots=True)
class ZoneNow:
    """One spot zone as last read: up or down, for how long, its price and its rates.

    Attributes:
        other_up: chance that another of the job's zones is up when this one is lost.
        dearer: by what share it counts dearer than its price because much of the fleet would be
            lost together with it (`spread.py`); it only weighs in the choice of a zone.
    """

    name: str
    up: bool
    age_s: float
    usd_per_hour: float
    hazards: Hazards
    other_up: float = 0.0
    dearer: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class JobMarketState:
    """One job and the spot market as they are at the decision. Durations in seconds.

    Attributes:
        work_left_s: running time still needed, without changeovers.
        time_left_s: until the deadline.
        horizon_s: the whole time the job had, start to deadline; sets the step of the table.
        changeover_s: from asking for an instance to training again, paid at its price.
        owed_s: what of a changeover the running instance has still to do; 0 when idle.
        tick_s: longest time from one decision to the next; a loss may stay unseen that long.
        runs: what the job runs on now. Spot whose zone is down counts as lost, so idle.
        zone: the zone it runs in; None unless on spot.
        zones: the zones that may be used. Several zones lie side by side on one clock.
        on_demand_usd_per_hour: always available.
        together: rates of "any zone is up", needed with several zones.
        budget_left_usd: what may still be spent, or None. Money reserved for draining and for
            the shortest paid time is to be taken off before.
    """

    work_left_s: float
    time_left_s: float
    horizon_s: float
    changeover_s: float
    tick_s: float
    zones: Sequence[ZoneNow]
    on_demand_usd_per_hour: float
    runs: Runs = Runs.IDLE
    owed_s: float = 0.0
    zone: str | None = None
    together: Hazards | None = None
    budget_left_usd: float | None = None

    def __post_init__(self) -> None:
        if self.tick_s <= 0 or self.horizon_s <= 0 or self.changeover_s < 0:
            raise SpecError(
                f"tick {self.tick_s} s, horizon {self.horizon_s} s and changeover "
                f"{self.changeover_s} s: tick and horizon must be above 0, the changeover 0 or more"
            )
        if (self.runs is Runs.SPOT) != (self.zone is not None):
            raise SpecError(
                f"a job on {self.runs} with zone {self.zone!r}: name the zone when it runs on "
                "spot, and only then"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """What to run on until the next decision, and why.

    Attributes:
        zone: where to run on spot; None otherwise.
        why: the reason in words and numbers.
        late_s: how late the job will end at least; above 0 is an event for its owner.
        short_usd: how much more budget the choice that the deadline asks for would need; above 0
            is an event too.
        expected_usd: cost still to come if this is done, as the table expects; None where no
            table was asked.
    """

    action: Runs
    zone: str | None = None
    why: str
    late_s: float = 0.0
    short_usd: float = 0.0
    expected_usd: float | None = None


def live_zone(state: JobMarketState) -> ZoneNow | None:
    """The zone the job runs in on spot, if it is still up."""
    return next((z for z in state.zones if z.name == state.zone and z.up), None)


def late_by_s(state: JobMarketState, live: ZoneNow | None) -> float:
    running = live is not None or state.runs is Runs.ON_DEMAND
    owed_s = state.owed_s if running else state.changeover_s
    return max(0.0, state.work_left_s + owed_s - state.time_left_s)


def best_zone(zones: Sequence[ZoneNow], changeover_s: float) -> ZoneNow | None:
    """The zone where a start brings most useful time a dollar; age, then name break ties."""
    if len(zones) < 2:
        return zones[0] if zones else None

    def worth(zone: ZoneNow) -> tuple[float, float, str]:
        lasts_s = zone.hazards.expected_up_s(zone.age_s if zone.up else 0.0)
        useful = max(lasts_s - changeover_s, 0.0) / lasts_s
        return (useful / (zone.usd_per_hour * (1 + zone.dearer)), zone.age_s, zone.name)

    return max(zones, key=worth)
