"""`rayburst fleet replan`: every plan on record, made again by the planner that is installed."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from rayburst.errors import FleetError

_out = Console(highlight=False)


def replan(
    name: Annotated[
        str | None, typer.Argument(help="Fleet; the only one here if left out.")
    ] = None,
    file: Annotated[Path | None, typer.Option(help="A log of ticks, instead of a fleet's.")] = None,
) -> None:
    """Plan again what the planner saw, and say where it decides otherwise now.

    Reads `logs/ticks.jsonl` of a fleet, up or down, and the file before it. Fails when a plan is
    another one: of another version, or of a planner that was changed.
    """
    from rayburst.fleet.deadline import DeadlinePolicy
    from rayburst.fleet.recorder import earlier, read_ticks, replanned, said
    from rayburst.sdk import find_fleet

    last = file or find_fleet(name).ticks_file
    files = [one for one in (earlier(last), last) if one.exists()]
    if not files:
        raise FleetError(f"there is no {last}; the agent of a fleet that is up writes it")
    policy, count, other = DeadlinePolicy(), 0, []
    for tick in (tick for one in files for tick in read_ticks(one)):
        count += 1
        before, now = said(tick.plan), said(replanned(tick, policy))
        if before != now:
            parts = ", ".join(part for part in before if before[part] != now[part])
            other.append(f"{time.strftime('%H:%M:%S', time.localtime(tick.view.now))}: {parts}")
    _out.print(f"{count} plans, {count - len(other)} the same again")
    if other:
        raise FleetError("other plans now:\n  " + "\n  ".join(other))
