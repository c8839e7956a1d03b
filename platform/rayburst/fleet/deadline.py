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

from rayburst.errors import SpecError
from rayburst.fleet.budget import within_budget
from rayburst.fleet.hazards import Hazards, age_bin
from rayburst.fleet.job_state import (
    Decision,
    JobMarketState,
    Runs,
    ZoneNow,
    best_zone,
    late_by_s,
    live_zone,
)
from rayburst.fleet.slack_table import STEPS, After, SlackTable, TableKey, solve

_SHARES = 20  # changeovers are rounded to twentieths of a step, so that jobs share tables


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
        live = live_zone(state)
        wanted = self._within_deadline(state, live)
        if state.budget_left_usd is None:
            return wanted
        return within_budget(state, wanted, state.budget_left_usd)

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
        late_s = late_by_s(state, live)
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
        best = best_zone(offered or state.zones, state.changeover_s)
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
            if left - spare < 1.0:
                del costs[Runs.IDLE]  # so little work is not told apart from waiting for a step
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


def _age_s(state: JobMarketState, best: ZoneNow, up: bool) -> float:
    return best.age_s if up else min(z.age_s for z in state.zones)


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
