"""`rayburst top`: one screen of a fleet that keeps itself up to date. `report/top.py` draws it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from rayburst.errors import JobError, RayburstError
from rayburst.fleet.taken import taken_away
from rayburst.report.top import JobSeen, PoolSeen, Snapshot, TakenSeen, draw

if TYPE_CHECKING:
    from rayburst.job import Job
    from rayburst.sdk import Platform

_JOBS = 4
_LINE = 160


def top(
    name: Annotated[
        str | None,
        typer.Argument(help="The fleet's name; may be left out when one fleet is up here."),
    ] = None,
    every: Annotated[float, typer.Option(help="Seconds from one look to the next.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Print the screen once and end.")] = False,
    svg: Annotated[
        Path | None, typer.Option(help="Write the screen here as a picture, and end.")
    ] = None,
) -> None:
    """Watch a fleet: pools, nodes, jobs, what is taken away, dollars an hour. Ctrl-C ends it."""
    from rich.live import Live

    from rayburst.sdk import connect

    platform = connect(name)
    if once or svg is not None:
        console = Console(record=svg is not None, width=110 if svg else None)
        console.print(draw(look(platform, now=time.time()), height=console.height))
        if svg is not None:
            console.save_svg(str(svg), title=f"rayburst top {platform.name}")
        return
    console = Console()
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            live.update(draw(look(platform, now=time.time()), height=console.height), refresh=True)
            try:
                time.sleep(every)
            except KeyboardInterrupt:
                return


def look(platform: Platform, *, now: float) -> Snapshot:
    """The fleet at `now` (unix seconds). What does not answer is told as a problem."""
    status = platform.fleet()
    problems = list(status.problems)
    try:
        events, bill = platform.events(), platform.cost()
        usd, listed = bill.usd if bill.usd_is_complete else None, bill.usd_if_on_demand
    except RayburstError as error:
        events, usd, listed = [], None, None
        problems.append(str(error))
    try:
        jobs = [_job(job) for job in platform.jobs()[:_JOBS]]
    except RayburstError as error:
        jobs = []
        problems.append(str(error))
    living = [node.pool for node in status.nodes]
    return Snapshot(
        fleet=status.name,
        clock=time.strftime("%H:%M:%S", time.localtime(now)),
        pools=[
            PoolSeen(
                name=pool.name,
                market=str(pool.market),
                living=living.count(pool.name),
                most=pool.max_hosts,
                price_usd_per_hour=pool.price_usd_per_hour,
            )
            for pool in platform.spec().pools
        ],
        nodes=status.nodes,
        jobs=jobs,
        pending=status.pending,
        taken=[
            TakenSeen(ago_s=now - one.t, node=one.node, market=one.market, words=one.words)
            for one in reversed(taken_away(events))
        ],
        usd=usd,
        usd_if_on_demand=listed,
        problems=problems,
    )


def _job(job: Job) -> JobSeen:
    try:
        status = job.status
        lines = [line for line in job.logs().splitlines() if line.strip()]
    except JobError as error:
        return JobSeen(id=job.id, status="UNKNOWN", last_line=str(error)[:_LINE])
    return JobSeen(id=job.id, status=status, last_line=lines[-1][:_LINE] if lines else "")
