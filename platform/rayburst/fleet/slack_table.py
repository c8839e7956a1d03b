"""The backward-solved table of a deadline policy: what it costs to go on, by slack. Pure.

    table = solve(TableKey(step_s=600, changeover_s=720, price_ratio=3.1, hazards=hazards))
    table.cost(After.SPOT_START, up=True, steps_left=400, slack=80.0, bin_=3)

Slack is time left minus work left minus changeover still to pay. Running spends none; an idle step
spends one step; every start spends the changeover. A state is (steps left, slack, what runs, spot
up or down, age bin of that run), and the table holds the expected cost after each choice, solved
from the deadline backwards. One table serves every job of the same step, changeover and prices: the
work left is the time left minus the slack.

Cost is counted in steps at the spot price: running a step on spot costs 1, on-demand `price_ratio`.

Knows no clock, no zone names and no money. It does not know how much of a changeover was paid when
an instance is lost: a loss inside the changeover gives that slack back, which only helps.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from rayburst.fleet.hazards import AGE_EDGES_S, BINS, Hazards

STEPS = 480
"""Steps that a table looks back from the deadline."""

_ROWS = STEPS + 2  # what lies between two points at the far end has neighbours beyond it

SLACK_STEPS = 192
"""Largest slack in a table, in steps. More is treated as an earlier deadline of the same work."""

_LATE = 20.0
"""Cost of one step of lateness in units of the on-demand price. Never paid by the policy, which
keeps a safety net; it only keeps the table finite beyond the net."""

Floats = npt.NDArray[np.float32]


class After(IntEnum):
    """A choice at the start of a step: the index of its expected cost in the table."""

    IDLE = 0
    SPOT_START = 1
    SPOT_STAY = 2
    ON_DEMAND_START = 3
    ON_DEMAND_STAY = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class TableKey:
    """All that a table depends on.

    Attributes:
        step_s: length of a step.
        changeover_s: what a start costs in time, paid at the new instance's price.
        price_ratio: on-demand price over spot price.
        hazards: rates of the spot capacity in use (or of the zone that would be used).
        other: chance that another zone is up when the one in use is lost (0 for one zone).
        other_bins: how long that other zone has been up, as weights of age bins; sums to 1.
    """

    step_s: float
    changeover_s: float
    price_ratio: float
    hazards: Hazards
    other: float = 0.0
    other_bins: tuple[float, ...] = (1.0,) + (0.0,) * (BINS - 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class SlackTable:
    """Expected cost to come after a step, for each mode that the step leaves behind.

    Attributes:
        up: spot is up now; shape [3 modes, STEPS + 3, BINS, SLACK_STEPS + 1]; modes idle, spot,
            on-demand. Index [mode, n] is the cost after this step when n steps are left before it.
        down: the same with spot down; shape [2 modes, ...]; modes idle, on-demand.
    """

    key: TableKey
    up: Floats
    down: Floats

    def cost(self, after: After, *, up: bool, steps_left: float, slack: float, bin_: int) -> float:
        """Expected cost of a choice, in steps at the spot price.

        Args:
            steps_left: time to the deadline in steps.
            slack: time left minus work left minus the changeover that a running instance still
                owes, in steps.
        """
        work = max(steps_left - slack, 0.0)
        slack = min(slack, SLACK_STEPS)
        d = self.key.changeover_s / self.key.step_s
        starts = after in (After.SPOT_START, After.ON_DEMAND_START)
        spent = d if starts else float(after is After.IDLE)
        runs_for = 0.0 if after is After.IDLE else min(work + (d if starts else 0.0), 1.0)
        price = self.key.price_ratio if after >= After.ON_DEMAND_START else 1.0
        mode = 0 if after is After.IDLE else 1 if after <= After.SPOT_STAY or not up else 2
        rows = self.up if up else self.down
        rest = work + (d if starts else 0.0) - runs_for
        return runs_for * price + _rest(rows, mode, bin_, rest, slack - spent)


def _rest(rows: Floats, mode: int, bin_: int, work: float, slack: float) -> float:
    """What is to come after a step, linear between lattice points of work and of slack.

    A row holds all pairs of work and slack of one time left, so neighbours in work lie in two rows.
    Less than a step of work costs an idle job a whole start, and none costs nothing: the line
    through one step and two is carried on down to there.
    """
    slack = max(slack, 0.0)
    low, whole = min(int(slack), SLACK_STEPS - 1), int(work)
    part, over = slack - low, work - whole
    if whole == 0 and mode == 0:
        whole, over = 1, over - 1.0
    cost = [0.0, 0.0]
    for more in (0, 1):
        left = 1 + whole + more + low
        here = rows.item(mode, min(left, _ROWS), bin_, low)
        next_ = rows.item(mode, min(left + 1, _ROWS), bin_, low + 1)
        cost[more] = here + (next_ - here) * part
    return max(cost[0] + (cost[1] - cost[0]) * over, 0.0)


def solve(key: TableKey) -> SlackTable:
    """Solve one table backwards from the deadline; about a quarter of a second."""
    d = key.changeover_s / key.step_s
    slack = np.arange(SLACK_STEPS + 1, dtype=np.float32)
    shift_start, late = _Shift(d), np.float32(_LATE * key.price_ratio) * np.maximum(d - slack, 0)
    late_idle = np.float32(_LATE * key.price_ratio) * np.maximum(1 - slack, 0)
    can_spot = np.where(slack >= 2 * d + 1, 0, np.float32(1e6)).astype(np.float32)
    can_idle = np.where(slack >= d + 1, 0, np.float32(1e6)).astype(np.float32)
    chain = _Chain.of(key)
    up = np.zeros((3, _ROWS + 1, BINS, SLACK_STEPS + 1), np.float32)
    down = np.zeros((2, _ROWS + 1, BINS, SLACK_STEPS + 1), np.float32)
    value_up, value_down = up[:, 0].copy(), down[:, 0].copy()
    ratio = np.float32(key.price_ratio)
    for left in range(1, _ROWS + 1):
        work = left - slack
        go_on, start = np.clip(work, 0, 1), np.clip(work + d, 0, 1)
        after_up, after_down = chain.expect(value_up, value_down)
        up[:, left], down[:, left] = after_up, after_down
        idle_up = _shift_one(after_up[0]) + late_idle + can_idle
        idle_down = _shift_one(after_down[0]) + late_idle + can_idle
        spot = start + shift_start(after_up[1]) + can_spot
        fresh = ratio * start + late
        value_up[0] = _least(idle_up, spot, fresh + shift_start(after_up[2]))
        value_up[1] = go_on + after_up[1]
        value_up[2] = _least(ratio * go_on + after_up[2], spot, idle_up)
        value_down[0] = np.minimum(idle_down, fresh + shift_start(after_down[1]))
        value_down[1] = np.minimum(ratio * go_on + after_down[1], idle_down)
        done = work <= 0
        value_up[:, :, done] = 0
        value_down[:, :, done] = 0
    return SlackTable(key=key, up=up, down=down)


def _least(a: Floats, b: Floats, c: Floats) -> Floats:
    return np.minimum(np.minimum(a, b), c)


def _shift_one(values: Floats) -> Floats:
    out = np.empty_like(values)
    out[:, 1:] = values[:, :-1]
    out[:, 0] = values[:, 0]
    return out


class _Shift:
    """Read rows of values at `slack - d`, linear between lattice points."""

    def __init__(self, d: float):
        self._whole = min(int(np.ceil(d)), SLACK_STEPS)
        self._part = np.float32(np.ceil(d) - d)

    def __call__(self, values: Floats) -> Floats:
        whole = self._whole
        out = np.empty_like(values)
        out[:, :whole] = values[:, :1]
        low = values[:, : SLACK_STEPS + 1 - whole]
        if self._part:
            high = values[:, 1 : SLACK_STEPS + 2 - whole]
            low = low + (high - low) * self._part
        out[:, whole:] = low
        return out


@dataclass(frozen=True, kw_only=True, slots=True)
class _Chain:
    """One step of the market: ageing, losses, returns, as matrices over age bins."""

    stay_up: Floats
    stay_down: Floats
    lose: Floats
    free: Floats
    stay_free: Floats
    rise: Floats
    other: float
    other_bins: Floats

    @staticmethod
    def of(key: TableKey) -> _Chain:
        ages = _ageing(key.step_s)
        up, down = (
            -np.expm1(-np.array(rates) * key.step_s) for rates in (key.hazards.up, key.hazards.down)
        )
        free = up * (1.0 - key.other)  # not running on spot, only the loss of every zone counts
        return _Chain(
            stay_up=((1 - up)[:, None] * ages).astype(np.float32),
            stay_down=((1 - down)[:, None] * ages).astype(np.float32),
            lose=up[:, None].astype(np.float32),
            free=free[:, None].astype(np.float32),
            stay_free=((1 - free)[:, None] * ages).astype(np.float32),
            rise=down[:, None].astype(np.float32),
            other=key.other,
            other_bins=np.array(key.other_bins, np.float32),
        )

    def expect(self, up: Floats, down: Floats) -> tuple[Floats, Floats]:
        """Expected value one step later, by mode left behind: (while up, while down)."""
        landed = down[0, 0] * (1 - self.other)
        if self.other:
            landed = landed + self.other * (self.other_bins @ up[0])
        while_up = np.empty_like(up)
        while_up[0] = self.stay_free @ up[0] + self.free * down[0, 0]
        while_up[1] = self.stay_up @ up[1] + self.lose * landed
        while_up[2] = self.stay_free @ up[2] + self.free * down[1, 0]
        while_down = np.empty_like(down)
        while_down[0] = self.stay_down @ down[0] + self.rise * up[0, 0]
        while_down[1] = self.stay_down @ down[1] + self.rise * up[2, 0]
        return while_up, while_down


def _ageing(step_s: float) -> npt.NDArray[np.float64]:
    """Chance to be in bin j a step after being somewhere in bin i; shape [BINS, BINS]."""
    edges = (*AGE_EDGES_S, np.inf)
    matrix = np.zeros((BINS, BINS))
    for i in range(BINS - 1):
        low, high = edges[i] + step_s, edges[i + 1] + step_s
        for j in range(i, BINS):
            overlap = min(high, edges[j + 1]) - max(low, edges[j])
            matrix[i, j] = max(overlap, 0.0) / (high - low)
    matrix[BINS - 1, BINS - 1] = 1.0
    return matrix
