"""What a run did with its time and its checkpoints, from its log. Pure.

report = run_report(records)             # records of `rayburst.train.runlog`
print(report); report.to_json()
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rayburst.report.history import BEGINS
from rayburst.train.goodput import Goodput, goodput
from rayburst.train.resizing import Growth
from rayburst.train.stragglers import Straggler, stragglers

__all__ = ["RunReport", "run_report"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RunReport:
    """`pace`: interval_s and the numbers it followed from, at the last checkpoint; None before one.

    `growths`: decisions whether to grow, each with its numbers (`rayburst.train.resizing.Growth`).
    `world_sizes`: in the order in which the groups ran. `left_out`: steps whose gradient was not
    finite. `loss`: of the last step; None where there is none, or it is not finite. `stragglers`:
    workers that hold the others up.
    """

    goodput: Goodput
    pace: Mapping[str, float] | None
    checkpoints: int
    unsaved: int
    world_sizes: Sequence[int]
    left_out: int
    loss: float | None
    stragglers: Sequence[Straggler] = ()
    growths: Sequence[Growth] = ()

    @property
    def data_wait_share(self) -> float | None:
        """Of the time of steps that last: how much of it was waiting for data."""
        seconds = self.goodput.seconds
        stepping_s = seconds["training"] + seconds["data"]
        return seconds["data"] / stepping_s if stepping_s else None

    def to_json(self) -> dict[str, Any]:
        """For a file or a page."""
        return {
            "goodput": self.goodput.to_json(),
            "pace": None if self.pace is None else dict(self.pace),
            "checkpoints": self.checkpoints,
            "unsaved": self.unsaved,
            "world_sizes": list(self.world_sizes),
            "left_out": self.left_out,
            "loss": self.loss,
            "stragglers": [one.to_json() for one in self.stragglers],
            "data_wait_share": self.data_wait_share,
            "growths": [found.to_json() for found in self.growths],
        }

    def __str__(self) -> str:
        worlds = ", ".join(map(str, self.world_sizes)) or "none yet"
        lines = [str(self.goodput), f"workers: {worlds}; {self.checkpoints} checkpoints"]
        if self.unsaved:
            lines.append(f"{self.unsaved} checkpoints could not be saved")
        if self.left_out:
            lines.append(f"{self.left_out} steps left out: their gradient was not finite")
        lines += map(str, self.stragglers)
        if self.pace is not None:
            p = self.pace
            lines.append(
                f"a checkpoint pays every {p['interval_s']:.0f} s: it blocks for "
                f"{p['blocked_s']:.2f} s, is durable {p['durable_s']:.1f} s later, and an "
                f"interruption is expected every {p['between_s']:.0f} s"
            )
        if self.data_wait_share is not None:
            lines.append(f"steps waited for data for {self.data_wait_share:.2%} of their time")
        lines += [str(found) for found in self.growths]
        return "\n".join(lines)


def run_report(records: Sequence[Mapping[str, Any]]) -> RunReport:
    """The report of a log; of a log without a start, zeros."""
    committed = [r for r in records if r["kind"] == "committed"]
    worlds = [r["world"] for r in records if r["kind"] in BEGINS and r["rank"] == 0]
    steps = [r for r in records if r["kind"] == "step"]
    loss = steps[-1].get("loss") if steps else None
    return RunReport(
        goodput=goodput(records),
        pace=next((r["pace"] for r in reversed(committed) if r.get("pace")), None),
        checkpoints=len(committed),
        unsaved=sum(r["kind"] == "unsaved" for r in records),
        world_sizes=[w for i, w in enumerate(worlds) if i == 0 or w != worlds[i - 1]],
        left_out=len({r["step"] for r in records if r["kind"] == "nonfinite"}),
        loss=loss if loss is not None and math.isfinite(loss) else None,
        stragglers=stragglers(records),
        growths=[Growth.from_json(r) for r in records if r["kind"] == "growth"],
    )
