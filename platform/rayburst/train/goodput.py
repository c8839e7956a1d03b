"""Goodput: what every worker-second of a run was spent on. Pure: the run log in, seconds out.

    spent = goodput(records)                 # records of `rayburst.train.runlog`
    spent.seconds["training"] / spent.total_s

A worker's time runs from when its process began to its end; one that a restart brought back is
counted from the moment at which the group stopped. Each worker's time is cut at every edge of what
is known about it and each piece counts once, for the first purpose below that holds then. So the
purposes sum to the total to the millisecond, whatever the log holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rayburst.report.history import Interval, Run, Tenure, ms, read_run
from rayburst.report.spend import partition

__all__ = ["PURPOSES", "Goodput", "goodput"]

PURPOSES: Mapping[str, str] = {
    "lost": "steps that an interruption undid",
    "data": "waiting for data",
    "training": "steps that last",
    "checkpoint": "blocked by checkpoints",
    "restarting": "starting and restarting",
    "idle": "none of these: leaving, validation at the end",
}
"""In order of precedence. Keys are stable; words for readers stand beside them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Goodput:
    """Worker-seconds of a run by purpose (see PURPOSES), and steps done again."""

    total_s: float
    seconds: Mapping[str, float]
    workers: int
    """The most at one time."""
    steps: int
    steps_redone: int

    @property
    def share(self) -> float | None:
        """Worker-seconds of training that lasts, over all; None for a run without any."""
        return self.seconds["training"] / self.total_s if self.total_s else None

    def to_json(self) -> dict[str, Any]:
        """For a report."""
        return {
            "total_s": self.total_s,
            "seconds": dict(self.seconds),
            "share": self.share,
            "workers": self.workers,
            "steps": self.steps,
            "steps_redone": self.steps_redone,
        }

    def __str__(self) -> str:
        lines = [f"{self.total_s:10.1f} worker-seconds, {self.steps} steps"]
        for purpose, words in PURPOSES.items():
            spent_s = self.seconds[purpose]
            part = spent_s / self.total_s if self.total_s else 0.0
            lines.append(f"{spent_s:10.1f} s {part:6.1%}  {words}")
        return "\n".join(lines)


def goodput(records: Sequence[Mapping[str, Any]]) -> Goodput:
    """Where the time of all workers went; all zeros for a log without a start."""
    run = read_run(records)
    total_ms = dict.fromkeys(PURPOSES, 0)
    for tenure, span in _lanes(run):
        for purpose, spent_ms in partition(span, _layers(run, records, tenure, span)).items():
            total_ms[purpose] += spent_ms
    redone = {step.step for step in run.steps if step.redone}
    return Goodput(
        total_s=sum(total_ms.values()) / 1000,
        seconds={purpose: spent_ms / 1000 for purpose, spent_ms in total_ms.items()},
        workers=max((t.world for t in run.tenures), default=0),
        steps=len({step.step for step in run.steps}),
        steps_redone=len(redone),
    )


def _lanes(run: Run) -> list[tuple[Tenure, Interval]]:
    """Each worker's tenure, and the time that it accounts for; those of a rank do not overlap."""
    lanes = []
    ended: dict[int, int] = {}
    for tenure in run.tenures:
        held = [c[0] for c in run.changeovers if c[0] <= tenure.start_ms <= c[1]]
        if tenure.stayed:  # until then its time is that of the rank that it had
            held = []
        elif tenure.began_ms is not None:
            held.append(tenure.began_ms)
        begins = max(min(held, default=tenure.start_ms), ended.get(tenure.rank, 0))
        ended[tenure.rank] = tenure.end_ms
        lanes.append((tenure, (min(begins, tenure.end_ms), tenure.end_ms)))
    return lanes


def _layers(
    run: Run, records: Sequence[Mapping[str, Any]], tenure: Tenure, span: Interval
) -> dict[str, list[Interval]]:
    # pieces outside of the span are cut off: steps of this rank's other tenures do no harm
    steps = [s for s in run.steps if s.rank == tenure.rank]
    kept = [s for s in steps if not s.redone]
    blocked = [
        (ms(r["t"] - (r.get("blocked_s") or 0.0)), ms(r["t"]))
        for r in records
        if r["kind"] in ("checkpoint", "snapshot") and r["rank"] == tenure.rank
    ]
    return {
        "lost": [(s.start_ms, s.end_ms) for s in steps if s.redone],
        "data": [(s.start_ms, s.start_ms + s.wait_ms) for s in kept],
        "training": [(s.start_ms, s.end_ms) for s in kept],
        "checkpoint": blocked,
        "restarting": [*run.changeovers, (span[0], tenure.start_ms)],
        "idle": [span],
    }
