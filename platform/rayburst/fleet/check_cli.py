"""`rayburst fleet check`: what a fleet file means, and whether its machines are fit for it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from rayburst.errors import FleetError

if TYPE_CHECKING:
    from rayburst.fleet.spec import FleetSpec

_out = Console(highlight=False)


def check(
    file: Annotated[Path, typer.Argument(help="A fleet file.")],
    live: Annotated[
        bool, typer.Option("--live", help="Try its machines too, over SSH, from each of them.")
    ] = False,
) -> None:
    """Check a fleet file and say in words what it means.

    With --live the head and every machine of its ssh pools are tried: clock, versions, CPUs, memory
    and GPUs, the object store, and whether they reach each other, both ways. Of ec2 pools EC2 is
    asked whether image, subnets, security groups and types are there and fit.
    """
    from rayburst.fleet.explain import explain
    from rayburst.fleet.spec import FleetSpec

    spec = FleetSpec.load(file)
    if live:
        _try_machines(spec)
    else:
        _out.print(explain(spec).replace("[", r"\["), soft_wrap=True)


def _try_machines(spec: FleetSpec) -> None:
    from rayburst.fleet.live_check import check_live, summary
    from rayburst.report.tables import Table

    finds = check_live(spec, environment=os.environ)
    _out.print(Table(f"machines of {spec.name}", ("machine", "tried", "found"), summary(finds)))
    if wrong := [f"{find.host}: {find.wrong}" for find in finds if find.wrong]:
        raise FleetError("not fit to be one fleet:\n  " + "\n  ".join(wrong))
