"""What a job with a deadline should run on now: spot, on-demand, or nothing yet. Pure: numpy only.

    policy = DeadlinePolicy()
    decision = policy.decide(JobMarketState(work_left_s=..., time_left_s=..., ...))
    decision.action, decision.zone, decision.why

The cheapest choice comes from a table solved backwards from the deadline (`slack_table.py`) under
rates counted so far (`hazards.py`). Three rules stand above it, in this order: the budget is never
overspent; live spot is never left; the safety net goes on-demand while the deadline can still be
met, whatever the table says. The same call decides live and in replay.

Knows no clock, no cloud and no history: what was observed is in the state. It decides for one job;
which hosts of a zone serve it is the planner's part.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from rayburst.errors import SpecError
from rayburst.fleet.hazards import Hazards, age_bin
from rayburst.fleet.slack_table import STEPS, After, SlackTable, TableKey, solve

_SHARES = 20  # changeovers are rounded to twentieths of a step, so that jobs share tables


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
    """

    name: str
    up: bool
    age_s: float
    usd_per_hour: float
    hazards: Hazards
    other_up: float = 0.0


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


class DeadlinePolicy:
    """Decides for one job at a time; holds nothing but solved tables, so the same state always
    gets the same decision.

    Required: call `decide` at least every `tick_s` of the state. Optional: `tables` bounds the
    memory (18 MB each); use as many as there are pairs of zone and job shape.
    """

    def __init__(self, *, tables: int = 16):
        self._most = tables
        self._tables: OrderedDict[TableKey, SlackTable] = OrderedDict()

    def decide(self, state: JobMarketState) -> Decision:
        """The cheapest choice that keeps budget and deadline. Microseconds once a table is there.

        Raises:
            SpecError: several zones without the rates of all together.
        """
        if state.work_left_s <= 0:
            return Decision(action=Runs.IDLE, why="no work is left")
        live = _live(state)
        wanted = self._within_deadline(state, live)
        if state.budget_left_usd is None:
            return wanted
        return _within_budget(state, live, wanted, state.budget_left_usd)

    def table(self, key: TableKey) -> SlackTable:
        """The solved table of a key, from memory where it is there."""
        found = self._tables.get(key)
        if found is None:
            found = self._tables[key] = solve(key)
            if len(self._tables) > self._most:
                self._tables.popitem(last=False)
        else:
            self._tables.move_to_end(key)
        return found

    def _within_deadline(self, state: JobMarketState, live: ZoneNow | None) -> Decision:
        late_s = _late_s(state, live)
        if live is not None:
            return Decision(
                action=Runs.SPOT,
                zone=live.name,
                late_s=late_s,
                why=f"spot in {live.name} is up for {_h(live.age_s)}: live spot is kept",
            )
        spare_s = state.time_left_s - state.work_left_s
        net_s = 2 * state.changeover_s + state.tick_s
        if late_s > 0:
            why = f"the deadline cannot be met: {_h(late_s)} late even on-demand without a pause"
            return Decision(action=Runs.ON_DEMAND, late_s=late_s, why=why)
        if spare_s < net_s - 1e-6:
            why = (
                f"safety net: {_h(spare_s)} to spare is less than two changeovers and a tick "
                f"({_h(net_s)})"
            )
            return Decision(action=Runs.ON_DEMAND, why=why)
        return self._cheapest(state)

    def _cheapest(self, state: JobMarketState) -> Decision:
        offered = [z for z in state.zones if z.up]
        best = _best(offered or state.zones, state.changeover_s)
        if best is None:
            return Decision(action=Runs.ON_DEMAND, why="no spot zone may be used")
        table = self.table(table_key(state, best))
        step_s, up = table.key.step_s, bool(offered)
        on_demand = state.runs is Runs.ON_DEMAND
        owed_s = state.owed_s if on_demand else 0.0
        left = state.time_left_s / step_s
        spare = (state.time_left_s - state.work_left_s) / step_s
        bin_ = age_bin(_age_s(state, best, up))
        od = After.ON_DEMAND_STAY if on_demand else After.ON_DEMAND_START
        costs = {
            Runs.IDLE: table.cost(After.IDLE, up=up, steps_left=left, slack=spare, bin_=bin_),
            Runs.ON_DEMAND: table.cost(
                od, up=up, steps_left=left, slack=spare - owed_s / step_s, bin_=bin_
            ),
        }
        if up:
            costs[Runs.SPOT] = table.cost(
                After.SPOT_START, up=True, steps_left=left, slack=spare, bin_=bin_
            )
        action = min(costs, key=lambda a: (costs[a], a is not state.runs, a))
        usd = {a: c * step_s / 3600.0 * best.usd_per_hour for a, c in costs.items()}
        return Decision(
            action=action,
            zone=best.name if action is Runs.SPOT else None,
            expected_usd=usd[action],
            why=_why(state, best, usd),
        )


def table_key(state: JobMarketState, zone: ZoneNow) -> TableKey:
    """The table that a job needs while `zone` is the one it would use."""
    step_s = max(state.tick_s, _table_step_s(state.horizon_s))
    ratio = round(state.on_demand_usd_per_hour / zone.usd_per_hour, 2)
    if len(state.zones) == 1:
        hazards, other = zone.hazards, 0.0
    elif state.together is None:
        raise SpecError(
            f"{len(state.zones)} zones without `together`: give the rates of 'any zone is up' too"
        )
    else:
        hazards = Hazards(up=zone.hazards.up, down=state.together.down)
        other = zone.other_up
    return TableKey(
        step_s=step_s,
        changeover_s=round(state.changeover_s / step_s * _SHARES) * step_s / _SHARES,
        price_ratio=ratio,
        hazards=hazards,
        other=other,
    )


def _table_step_s(horizon_s: float) -> float:
    """The next of 600 s times a power of the square root of 2, so that jobs share tables."""
    power = math.ceil(2 * math.log2(horizon_s / STEPS / 600.0) - 1e-9)
    return float(600.0 * 2.0 ** (power / 2))


def _live(state: JobMarketState) -> ZoneNow | None:
    """The zone the job runs in on spot, if it is still up."""
    return next((z for z in state.zones if z.name == state.zone and z.up), None)


def _late_s(state: JobMarketState, live: ZoneNow | None) -> float:
    running = live is not None or state.runs is Runs.ON_DEMAND
    owed_s = state.owed_s if running else state.changeover_s
    return max(0.0, state.work_left_s + owed_s - state.time_left_s)


def _best(zones: Sequence[ZoneNow], changeover_s: float) -> ZoneNow | None:
    """The zone where a start brings most useful time a dollar; age, then name break ties."""
    if len(zones) < 2:
        return zones[0] if zones else None

    def worth(zone: ZoneNow) -> tuple[float, float, str]:
        lasts_s = zone.hazards.expected_up_s(zone.age_s if zone.up else 0.0)
        useful = max(lasts_s - changeover_s, 0.0) / lasts_s
        return (useful / zone.usd_per_hour, zone.age_s, zone.name)

    return max(zones, key=worth)


def _age_s(state: JobMarketState, best: ZoneNow, up: bool) -> float:
    return best.age_s if up else min(z.age_s for z in state.zones)


def _within_budget(
    state: JobMarketState, live: ZoneNow | None, wanted: Decision, budget_usd: float
) -> Decision:
    """The budget is hard: take what is wanted if the rest can still be paid for, at least on spot.

    Inside the safety net on-demand means to the end. A budget that cannot carry that cannot promise
    the deadline: spot that is up comes first then, and on-demand only while enough is left to end
    on spot. The decision says how much is short.
    """
    spot = live or _best([z for z in state.zones if z.up], state.changeover_s)
    need_usd = _needs_usd(state, wanted, spot, live)
    if need_usd <= budget_usd + 1e-9:
        return wanted
    able = [a for a in (Runs.SPOT, wanted.action, Runs.IDLE) if a is not Runs.SPOT or spot]
    action = next(a for a in able if _commits_usd(state, a, spot, live) <= budget_usd + 1e-9)
    return Decision(
        action=action,
        zone=spot.name if action is Runs.SPOT and spot is not None else None,
        late_s=_late_if(state, action, live),
        short_usd=need_usd - budget_usd,
        why=(
            f"budget: {budget_usd:.2f} USD left, {need_usd:.2f} needed for {wanted.action} "
            f"({wanted.why})"
        ),
    )


def _needs_usd(
    state: JobMarketState, wanted: Decision, spot: ZoneNow | None, live: ZoneNow | None
) -> float:
    """What the wanted choice needs: inside the net, on-demand to the end of the work."""
    spare_s = state.time_left_s - state.work_left_s
    if wanted.action is Runs.ON_DEMAND and spare_s < 2 * state.changeover_s + state.tick_s:
        owed_s = state.owed_s if state.runs is Runs.ON_DEMAND else state.changeover_s
        return (owed_s + state.work_left_s) * state.on_demand_usd_per_hour / 3600.0
    return _commits_usd(state, wanted.action, spot, live)


def _commits_usd(
    state: JobMarketState, action: Runs, spot: ZoneNow | None, live: ZoneNow | None
) -> float:
    """Least money the job needs from here if it takes `action` for one tick and spot after that."""
    if action is Runs.IDLE:
        return float("-inf")
    cheapest = min((z.usd_per_hour for z in state.zones), default=state.on_demand_usd_per_hour)
    stays = state.runs is action and (action is Runs.ON_DEMAND or live is not None)
    first_s = state.owed_s if stays else state.changeover_s
    total_s = first_s + state.work_left_s
    tick_s = min(state.tick_s, total_s)
    if action is Runs.SPOT and spot is not None:
        return tick_s * spot.usd_per_hour / 3600.0
    rest_s = total_s - tick_s
    rest_usd = 0.0 if rest_s <= 0 else (rest_s + state.changeover_s) * cheapest
    return (tick_s * state.on_demand_usd_per_hour + rest_usd) / 3600.0


def _late_if(state: JobMarketState, action: Runs, live: ZoneNow | None) -> float:
    wait_s = state.tick_s if action is Runs.IDLE else 0.0
    return max(0.0, _late_s(state, live) + wait_s)


def _why(state: JobMarketState, zone: ZoneNow, usd: dict[Runs, float]) -> str:
    spare_s = state.time_left_s - state.work_left_s
    seen = "up" if zone.up else "down"
    choices = ", ".join(f"{a} {usd[a]:.2f}" for a in sorted(usd, key=lambda a: usd[a]))
    return (
        f"{_h(spare_s)} to spare, spot in {zone.name} {seen} for {_h(zone.age_s)}; "
        f"expected USD to the end: {choices}"
    )


def _h(seconds: float) -> str:
    return f"{seconds / 3600.0:.2f} h"
