"""What an interruption cost a training run: seconds without a step, and steps done again. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rayburst.report.history import BEGINS

_SAME_START_S = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Gap:
    """From the last step before the change to the first one after it.

    Attributes:
        gap_s: seconds in which no rank finished a step.
        steps_lost: finished steps that had to be done again.
        world_before, world_after: number of workers.
    """

    gap_s: float
    steps_lost: int
    world_before: int
    world_after: int


def gap_after(run_log: Sequence[Mapping[str, Any]], *, node: str, t: float) -> Gap | None:
    """The gap of the restart or change that left `node` behind after time `t` (unix seconds).

    None while training has not come back, when it had come to its end, and when the node held no
    worker of the run.
    """
    starts = [r for r in run_log if r["kind"] in BEGINS]
    held = [r["t"] for r in starts if r["host"] == node and r["t"] <= t]
    back = _first_start_without(starts, node, t) if held else None
    if back is None:
        return None
    if any(r["kind"] == "end" and max(held) <= r["t"] <= back["t"] for r in run_log):
        return None  # what came back was another submission
    steps = [r for r in run_log if r["kind"] == "step"]
    before = [r for r in steps if r["t"] < back["t"]]
    after = [r for r in steps if r["t"] >= back["t"]]
    if not before or not after:
        return None
    last = max(before, key=lambda r: r["t"])
    first = min(after, key=lambda r: r["t"])
    return Gap(
        gap_s=first["t"] - last["t"],
        steps_lost=max(0, max(r["step"] for r in before) - back["step"]),
        world_before=last["world"],
        world_after=first["world"],
    )


def _first_start_without(
    starts: Sequence[Mapping[str, Any]], node: str, t: float
) -> Mapping[str, Any] | None:
    """The first start of a worker group after `t` in which no worker is on `node`."""
    later = sorted((r for r in starts if r["t"] > t), key=lambda r: r["t"])
    for record in later:
        group = [
            r
            for r in later
            if r["world"] == record["world"]
            and r["step"] == record["step"]
            and abs(r["t"] - record["t"]) < _SAME_START_S
        ]
        if all(r["host"] != node for r in group):
            return record
    return None
