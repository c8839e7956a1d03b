"""What a run that has begun says of the rest of it: pace, changeovers, steps. Pure: run log in.

seen = measured(records)
seen.work_left_s(steps=20_000), seen.changeover_s
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from rayburst.errors import DataError
from rayburst.report.history import read_run


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSeen:
    """Medians over a run.

    Attributes:
        step: the last one done. step_s: of one step at the last world size, blocked time included.
        world: the last world size. changeover_s: without a step, at a start.
    """

    step: int
    step_s: float
    world: int
    changeover_s: float

    def work_left_s(self, steps: int) -> float:
        """Running time to `steps` at the last world size."""
        return max(0, steps - self.step) * self.step_s


def measured(records: Sequence[Mapping[str, Any]]) -> RunSeen:
    """Read a run log. Raises DataError when it holds no step yet."""
    run = read_run(records)
    if not run.steps:
        raise DataError("the run log holds no step yet: nothing is measured; give --work instead")
    last = max(run.steps, key=lambda step: step.end_ms)
    mine = [s for s in run.steps if s.world == last.world]
    stops = [(end - start) / 1000 for start, end in run.changeovers]
    return RunSeen(
        step=last.step,
        step_s=median((s.end_ms - s.start_ms) / 1000 for s in mine) + _blocked_s(records, mine),
        world=last.world,
        changeover_s=median(stops) if stops else 0.0,
    )


def _blocked_s(records: Sequence[Mapping[str, Any]], steps: Sequence[Any]) -> float:
    """Seconds a step stood still for checkpoints, on the mean over rank 0's steps."""
    held = sum(
        r.get("blocked_s") or 0.0 for r in records if r["kind"] == "checkpoint" and not r["rank"]
    )
    count = sum(not step.rank for step in steps)
    return float(held) / count if count else 0.0
