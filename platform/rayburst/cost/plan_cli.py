"""`rayburst plan`: when a job will end and what it will cost, or how many machines a month needs.

The function is a typer command; `cli.py` mounts it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from rayburst.errors import SpecError

if TYPE_CHECKING:
    from rayburst.cost.capacity import CapacityPlan
    from rayburst.cost.forecast import Forecast, JobNeeds, Terms
    from rayburst.fleet.replay.futures import Belief

_out = Console(highlight=False)


def plan(
    run: Annotated[
        str | None,
        typer.Argument(
            help="A run of the fleet that is up; its pace and changeovers are measured."
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Steps the run is to do in all.")] = None,
    work: Annotated[str | None, typer.Option(help="Running time without pauses, as 48h.")] = None,
    changeover: Annotated[
        str | None, typer.Option(help="Time that every start costs, as 0.2h.")
    ] = None,
    nodes: Annotated[int, typer.Option(help="Nodes the job runs on at once.")] = 1,
    deadline: Annotated[str | None, typer.Option(help="From now, as 60h.")] = None,
    budget: Annotated[str | None, typer.Option(help="In all, as `120 USD`.")] = None,
    file: Annotated[
        Path | None, typer.Option(help="A fleet file: its prices, and its on-prem hosts.")
    ] = None,
    traces: Annotated[
        Path | None, typer.Option(help="A recorded spot zone to learn rates from.")
    ] = None,
    jobs: Annotated[
        Path | None, typer.Option(help="A CSV of a month of jobs: plan capacity instead.")
    ] = None,
    futures: Annotated[int, typer.Option(help="How many futures to draw.")] = 100,
    seed: Annotated[int, typer.Option(help="The same seed gives the same forecast.")] = 0,
    plot: Annotated[Path | None, typer.Option(help="Write a page with a picture here.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Forecast end and cost: on-prem only, spot, mixed, on-demand, with intervals.

    `rayburst plan --work 48h --changeover 0.2h --deadline 60h --budget "120 USD"`

    `rayburst plan --jobs month.csv --file cluster_configs/local.yaml`
    """
    import numpy as np

    from rayburst.cost.forecast import forecast
    from rayburst.cost.plans import limited, needs_of, terms_of
    from rayburst.fleet.spec import FleetSpec, default_path

    terms = terms_of(FleetSpec.load(file or default_path()))
    _out.width = max(_out.width, 120)
    told: CapacityPlan | Forecast
    if jobs is not None:
        told = _capacity(jobs, terms)
    else:
        needs = _needs(run, steps, work, changeover) if run else needs_of(work, changeover)
        told = forecast(
            limited(needs, nodes=nodes, deadline=deadline, budget=budget),
            terms,
            _belief(traces),
            rng=np.random.default_rng(seed),
            paths=futures,
        )
    if plot is not None:
        plot.write_text(told.html())
    if as_json:
        typer.echo(json.dumps(told.to_dict(), indent=1))
    else:
        _out.print(told.table())


def _needs(run: str, steps: int | None, work: str | None, changeover: str | None) -> JobNeeds:
    from rayburst.cost.plans import measured_needs
    from rayburst.sdk import connect
    from rayburst.train import runlog

    records = runlog.read(connect().store(), run)
    return measured_needs(records, run=run, steps=steps, work=work, changeover=changeover)


def _belief(traces: Path | None) -> Belief:
    from rayburst.cost.plans import believe
    from rayburst.fleet.replay.traces import read_traces

    found = [] if traces is None else read_traces(traces)
    if len(found) > 1:
        names = ", ".join(trace.name for trace in found)
        raise SpecError(f"--traces {traces} holds {names}: give the file or folder of one zone")
    return believe(found[0] if found else None)


def _capacity(jobs: Path, terms: Terms) -> CapacityPlan:
    from rayburst.cost.capacity import plan_capacity, read_jobs

    rent = terms.on_demand_usd_per_hour or terms.spot_usd_per_hour
    if terms.on_prem_usd_per_hour is None or rent is None:
        raise SpecError("--jobs needs prices of an on-prem and of a cloud pool in --file")
    found = read_jobs(jobs)
    return plan_capacity(
        found,
        own_usd_per_hour=terms.on_prem_usd_per_hour,
        burst_usd_per_hour=rent,
        most=min(64, sum(job.nodes for job in found)),
    )
