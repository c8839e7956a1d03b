"""The policies that others use, as "Can't Be Late" (NSDI'24) words them. Pure: numpy only.

Uniform Progress: never leave live spot. Idle: take spot if there is any, else go on-demand when
progress is behind the even pace, else wait. On-demand: stay until progress is two changeovers ahead
of the pace, then take spot if there is any; `uniform-progress` stays on-demand until spot appears,
`uniform-progress-idle` stops. Greedy: spot or nothing. All of them: when less than the work, two
changeovers and a tick are left, go on-demand and stay (live spot is kept).

With several zones they take the first zone, in the order given, that is up.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from rayburst.fleet.replay.lanes import IDLE, ON_DEMAND, SPOT, Bools, Ints, Lanes

Chooser = Callable[[Lanes, Ints, int, Bools], tuple[Ints, Ints]]
"""(lanes, rows, tick, which zones are up) -> (runs, zone) for each of the rows."""


def uniform_progress(*, keeps_on_demand: bool) -> Chooser:
    """Uniform Progress; `keeps_on_demand` tells what it does when ahead and without spot."""

    def choose(lanes: Lanes, rows: Ints, tick: int, up: Bools) -> tuple[Ints, Ints]:
        rules, runs = lanes.rules, lanes.runs[rows]
        progress = rules.work_s - lanes.left_s[rows]
        allowed = lanes.jobs.allowed_s[rows]
        passed = allowed - lanes.time_left_s(rows, tick)
        pace = passed * rules.work_s / allowed
        ahead = progress >= (passed + 2 * rules.changeover_s) * rules.work_s / allowed
        idle = np.where(progress < pace, ON_DEMAND, IDLE)
        if up.any():
            idle = np.full(len(rows), SPOT)
        freed = SPOT if up.any() else (ON_DEMAND if keeps_on_demand else IDLE)
        wanted = np.where(runs == IDLE, idle, np.where(ahead, freed, ON_DEMAND))
        return _settle(lanes, rows, tick, up, wanted)

    return choose


def greedy(lanes: Lanes, rows: Ints, tick: int, up: Bools) -> tuple[Ints, Ints]:
    """Spot whenever there is any, on-demand only for the safety net."""
    return _settle(lanes, rows, tick, up, np.full(len(rows), SPOT if up.any() else IDLE))


def on_demand(lanes: Lanes, rows: Ints, tick: int, up: Bools) -> tuple[Ints, Ints]:
    """On-demand from start to end."""
    return np.full(len(rows), ON_DEMAND), np.full(len(rows), -1)


def _settle(lanes: Lanes, rows: Ints, tick: int, up: Bools, wanted: Ints) -> tuple[Ints, Ints]:
    """Live spot stays; the safety net stands above the rest; spot means the first zone up."""
    rules, live = lanes.rules, lanes.runs[rows] == SPOT
    spare = lanes.time_left_s(rows, tick) - lanes.left_s[rows]
    net = spare < 2 * rules.changeover_s + rules.tick_s - 1e-6
    runs = np.where(live, SPOT, np.where(net, ON_DEMAND, wanted))
    zone = np.where(runs == SPOT, np.where(live, lanes.zone[rows], int(np.argmax(up))), -1)
    return runs, zone
