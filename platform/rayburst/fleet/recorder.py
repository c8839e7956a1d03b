"""What the planner was shown and what it answered, so that any plan can be made again.

    recorder = Recorder(fleet.ticks_file)
    recorder.note(Tick(view=view, demand=demand, plan=plan, span_any=False))
    [tick for tick in read_ticks(file) if said(replanned(tick)) != said(tick.plan)]   # none

One line of JSON for every tick whose plan says something else than the one before, and one every
`EVERY_S` while nothing changes. The file is begun anew at `MOST_BYTES`, the one before is kept.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from rayburst.errors import DataError
from rayburst.fleet.deadline import DeadlinePolicy
from rayburst.fleet.planner import plan_fleet
from rayburst.fleet.view import Demand, FleetView, Plan

EVERY_S = 30.0
MOST_BYTES = 16 * 1024**2


@dataclass(frozen=True, kw_only=True)
class Tick:
    """All that went into one plan, and the plan."""

    view: FleetView
    demand: Demand
    plan: Plan
    span_any: bool = False


class Recorder:
    """Writes ticks to `file`; after a restart it goes on at its end."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._said: object = None
        self._noted_at = float("-inf")

    def note(self, tick: Tick) -> None:
        """Write a tick down if it says something new, or nothing was written for a while."""
        gist = _gist(tick.plan)
        if gist == self._said and tick.view.now - self._noted_at < EVERY_S:
            return
        self._said, self._noted_at = gist, tick.view.now
        line = json.dumps(_adapter().dump_python(tick, mode="json"))
        if self._file.exists() and self._file.stat().st_size + len(line) > MOST_BYTES:
            self._file.replace(earlier(self._file))
        with self._file.open("a") as out:
            out.write(line + "\n")


def earlier(file: Path) -> Path:
    """Where the ticks before those of `file` are."""
    return file.with_suffix(f".1{file.suffix}")


def read_ticks(file: Path) -> Iterator[Tick]:
    """The ticks of one file, the oldest first. A last line that was cut off is left out.

    Raises:
        DataError: the file holds something else.
    """
    lines = file.read_text().splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        if not line.endswith("\n"):
            return
        try:
            yield _adapter().validate_python(json.loads(line))
        except (ValueError, ValidationError) as error:
            raise DataError(
                f"{file}, line {number} is no tick of a planner: {str(error).splitlines()[0]}; "
                "give the ticks.jsonl of a fleet's logs"
            ) from None


def replanned(tick: Tick, policy: DeadlinePolicy | None = None) -> Plan:
    """The plan that is made of what that tick saw, by the planner as it is now."""
    return plan_fleet(tick.view, tick.demand, policy=policy, span_any=tick.span_any)


def said(plan: Plan) -> Any:
    """All that a plan says, reasons included, as plain data that can be compared."""
    return json.loads(json.dumps(_plans().dump_python(plan, mode="json")))


def _gist(plan: Plan) -> object:
    """What a plan does; its reasons hold numbers that change all the time."""
    return (
        dict(plan.caps),
        {job: (g.hosts, g.coming, dict(g.pools)) for job, g in plan.grants.items()},
        [(action.kind, action.subject, action.count) for action in plan.actions],
    )


@cache  # made once: it takes longer than a tick may
def _adapter() -> TypeAdapter[Tick]:
    return TypeAdapter(Tick)


@cache
def _plans() -> TypeAdapter[Plan]:
    return TypeAdapter(Plan)
