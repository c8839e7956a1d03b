"""ASHA with its decisions in the order of the trials' numbers. Pure.

    rungs = Rungs(steps=900, first=100, factor=3)           # compares at 100, 300 and 900
    rungs.standings({0: {100: 3.1}, 1: {100: 3.4}}, trials=2)

Asynchronous successive halving (Li et al. 2020, https://arxiv.org/abs/1810.05934) compares a trial
that comes to a rung with those that came before it, and stops it unless it is among the best
1/factor. Who came before whom depends on machines; here it is who has the smaller number. So what
becomes of a trial is a function of values alone: values that come late, twice, or from another
process change nothing. With values in the order of the trials the decisions are those of Ray's own
ASHAScheduler. A trial whose decision still waits for others trains on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

__all__ = ["Rungs", "Standing", "Values"]

Values = Mapping[int, Mapping[int, float]]
"""Trial -> step -> what was measured there; lower is better, not finite is worst."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """What became of a trial. `rung`: the last step at which it was decided; 0: at none yet.

    "stopped" there, "done" with all steps, or "open": it may train on.
    """

    state: Literal["open", "stopped", "done"]
    rung: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Rungs:
    """Where trials of `steps` steps are compared: at first, first * factor, ..., and at the end."""

    steps: int
    first: int
    factor: int = 3

    def __post_init__(self) -> None:
        if not 1 <= self.first <= self.steps or self.factor < 2:
            raise ValueError(
                f"{self}: give 1 <= first <= steps, and a factor of 2 or more, for example "
                "Rungs(steps=900, first=100, factor=3)"
            )

    @property
    def milestones(self) -> tuple[int, ...]:
        """The steps at which a value is measured, ascending; the last one is the end."""
        found = []
        step = self.first
        while step < self.steps:
            found.append(step)
            step *= self.factor
        return (*found, self.steps)

    def standings(self, values: Values, *, trials: int) -> list[Standing]:
        """What becomes of each trial, by what is known so far."""
        found = [Standing(state="open")] * trials
        reaching: list[int | None] = list(range(trials))  # None: whether it comes here is open
        for milestone in self.milestones:
            reaching = self._decide(milestone, values, reaching, found)
        return found

    def _decide(
        self,
        milestone: int,
        values: Values,
        reaching: list[int | None],
        found: list[Standing],
    ) -> list[int | None]:
        """Write the decisions at one rung into `found`; who reaches the next, in order."""
        seen: list[float] = []
        is_known = True  # all that came before are
        following: list[int | None] = []
        for trial in reaching:
            value = None if trial is None else values.get(trial, {}).get(milestone)
            if trial is None or value is None:
                is_known = False
                following.append(None)
                continue
            if milestone == self.steps:
                worst = not math.isfinite(value)
                state: Literal["stopped", "done"] = "stopped" if worst else "done"
                found[trial] = Standing(state=state, rung=milestone)
            elif not math.isfinite(value) or (is_known and self._is_beaten(value, seen)):
                found[trial] = Standing(state="stopped", rung=milestone)
            elif is_known:
                found[trial] = Standing(state="open", rung=milestone)
                following.append(trial)
            else:
                following.append(None)
            if math.isfinite(value):
                seen.append(value)
        return following

    def _is_beaten(self, value: float, seen: list[float]) -> bool:
        return bool(seen) and value > float(np.percentile(seen, 100 / self.factor))

    def best(self, values: Values, *, trials: int) -> int | None:
        """The best trial that came to the end; of equals the first. None: none did."""
        done = [
            (values[trial][self.steps], trial)
            for trial, standing in enumerate(self.standings(values, trials=trials))
            if standing.state == "done"
        ]
        return min(done)[1] if done else None
