"""`rayburst simulate`: recorded spot markets through the planner, beside what others do.

The function is a typer command; `cli.py` mounts it. Everything is done by `fleet/replay`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from rayburst.errors import SpecError


def simulate(
    traces: Annotated[
        Path,
        typer.Option(
            help="A trace file, a folder of files (zones on one clock), or a folder of zone "
            "folders (windows of one recording each)."
        ),
    ],
    policies: Annotated[
        str,
        typer.Option(
            help="Which policies to replay, separated by commas. `deadline-policy` is one more: "
            "the rule inside the planner, asked alone; for jobs of one node."
        ),
    ] = "rayburst,uniform-progress,uniform-progress-idle,greedy,on-demand,omniscient",
    work: Annotated[str, typer.Option(help="Compute that a job needs, e.g. `48h`.")] = "48h",
    fraction: Annotated[
        str, typer.Option(help="Work over the time allowed, separated by commas.")
    ] = "0.6,0.7,0.8,0.9",
    changeover: Annotated[
        str, typer.Option(help="Time that every start costs, e.g. `0.2h`.")
    ] = "0.2h",
    zones: Annotated[
        str, typer.Option(help="`one`: each zone by itself. `many`: a job may use any of them.")
    ] = "one",
    nodes: Annotated[
        int,
        typer.Option(
            help="Size of the gang, for traces that count nodes. The planner's runs on fewer too; "
            "the others need all."
        ),
    ] = 1,
    polarity: Annotated[
        str,
        typer.Option(
            help="What a 1 means: `available`, `unavailable`, or `auto`, which knows windows by "
            "their start_time."
        ),
    ] = "auto",
    every: Annotated[
        str, typer.Option(help="Time between job starts where a recording is not cut in windows.")
    ] = "24h",
    thin: Annotated[int, typer.Option(help="Take one job of so many, for a quick look.")] = 1,
    json_out: Annotated[
        Path | None, typer.Option("--json", help="Write rows and means here as JSON.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Write a page with a picture here.")] = None,
) -> None:
    """Replay recorded spot markets: what would a job with a deadline have cost?

    `rayburst` is the planner that decides live, called at every reading, its plans carried out; its
    prior leaves out the zones it is replayed on. `omniscient` knows the future; nothing that needs
    all its nodes can cost less. Costs are over running all of it on-demand.

    Example:

        rayburst simulate --traces ../shared/traces/windows --fraction 0.8 --thin 10

        rayburst simulate --traces ../shared/traces/zones-2023-02 --zones many --plot replay.html
    """
    from rayburst.fleet.replay.picture import render
    from rayburst.fleet.replay.simulate import Settings
    from rayburst.fleet.replay.simulate import simulate as run
    from rayburst.fleet.replay.traces import Polarity
    from rayburst.fleet.units import duration_s

    settings = Settings(
        work_s=duration_s(work),
        fractions=_fractions(fraction),
        changeover_s=duration_s(changeover),
        policies=tuple(p.strip() for p in policies.split(",")),
        polarity=Polarity(_one_of("--polarity", polarity, tuple(Polarity))),
        many_zones=_one_of("--zones", zones, ("one", "many")) == "many",
        nodes=nodes,
        every_s=duration_s(every),
        thin=thin,
    )
    report = run(traces, settings)
    console = Console(highlight=False)
    console.width = max(console.width, 120)
    console.print(report.table())
    if json_out is not None:
        json_out.write_text(json.dumps(report.as_json(), indent=1) + "\n")
    if plot is not None:
        plot.write_text(render(report, f"Replay of {traces.name}, changeover {changeover}"))


def _fractions(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise SpecError(f"--fraction {text}: give numbers with commas, as 0.6,0.8") from error


def _one_of(option: str, given: str, known: tuple[str, ...]) -> str:
    if given not in known:
        raise SpecError(f"{option} {given}: give one of {', '.join(known)}")
    return given
