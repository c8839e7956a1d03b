"""The hard limit of a job with a budget: what a choice commits it to, and what to do instead. Pure.

It stands above every other rule of `deadline.py`. Knows no prices but those in the state, and no
table: it asks only whether the work can still be ended, at least on spot.
"""

from __future__ import annotations

from rayburst.fleet.job_state import (
    Decision,
    JobMarketState,
    Runs,
    ZoneNow,
    best_zone,
    late_by_s,
    live_zone,
)


def within_budget(state: JobMarketState, wanted: Decision, budget_usd: float) -> Decision:
    """The budget is hard: take what is wanted if the rest can still be paid for, at least on spot.

    Inside the safety net on-demand means to the end. A budget that cannot carry that cannot promise
    the deadline: spot that is up comes first then, and on-demand only while enough is left to end
    on spot. The decision says how much is short.
    """
    live = live_zone(state)
    spot = live or best_zone([z for z in state.zones if z.up], state.changeover_s)
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
    return max(0.0, late_by_s(state, live) + wait_s)
