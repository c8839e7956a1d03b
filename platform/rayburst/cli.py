"""The command line: a thin layer over the SDK.

    rayburst up && rayburst status && rayburst down

Errors that rayburst raises on purpose are printed as they are and end with exit code 1; wrong usage
ends with 2.
"""

from __future__ import annotations

import json
import re
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer
from rich.console import Console

from rayburst.checkpoint.cli import app as checkpoints_app
from rayburst.cost.advice_cli import hardware, tco
from rayburst.cost.plan_cli import plan
from rayburst.cost.prices_cli import app as prices_app
from rayburst.dev.cloud.cloud_cli import app as cloud_app
from rayburst.errors import FleetExistsError, RayburstError, SpecError
from rayburst.fleet.check_cli import check
from rayburst.fleet.render_cli import render
from rayburst.fleet.replan_cli import replan
from rayburst.fleet.simulate_cli import simulate
from rayburst.fleet.top_cli import top
from rayburst.fleet.watch_cli import watch
from rayburst.models.models_cli import app as models_app
from rayburst.serve.keys_cli import app as keys_app

if TYPE_CHECKING:
    from rayburst.sdk import Platform

_out = Console(highlight=False)
_err = Console(stderr=True, highlight=False)

app = typer.Typer(
    name="rayburst",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="An elastic ML platform on Ray: on-prem hosts first, spot for the burst, checkpoints that "
    "make every machine expendable.\n\n"
    "Start here: `rayburst demo`, or `rayburst up` and then `rayburst status`.",
)
fleet_app = typer.Typer(no_args_is_help=True, help="Check, explain and render fleet files.")
app.add_typer(fleet_app, name="fleet")
fleet_app.command()(render)
fleet_app.command()(check)
fleet_app.command()(replan)
dev_app = typer.Typer(no_args_is_help=True, help="What tests and trials stand on.")
dev_app.add_typer(cloud_app, name="cloud")
app.add_typer(dev_app, name="dev")
app.add_typer(checkpoints_app, name="checkpoints")
app.add_typer(prices_app, name="prices")
app.add_typer(keys_app, name="keys")
app.add_typer(models_app, name="models")
app.command()(simulate)
app.command()(hardware)
app.command()(tco)
app.command()(plan)
app.command()(top)
app.command()(watch)

FleetName = Annotated[
    str | None,
    typer.Argument(help="The fleet's name; may be left out when one fleet is up here."),
]
FleetOption = Annotated[
    str | None,
    typer.Option("--fleet", help="The fleet's name; may be left out when one fleet is up here."),
]


def main() -> None:
    """Entry point of `rayburst` and `python -m rayburst`."""
    try:
        app()
    except RayburstError as error:
        _err.print(f"[bold red]error:[/] {_plain(str(error))}", soft_wrap=True)
        raise SystemExit(1) from None


def _plain(text: str) -> str:
    return text.replace("[", r"\[")


@app.command()
def up(
    file: Annotated[
        Path | None, typer.Argument(help="A fleet file; by default a small fleet of this machine.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name it other than the file does.")] = None,
    dashboard_port: Annotated[
        int | None, typer.Option(help="Ray's dashboard here instead of on a free port.")
    ] = None,
    serve_port: Annotated[
        int | None, typer.Option(help="Ray Serve's HTTP here instead of on a free port.")
    ] = None,
    recover: Annotated[
        bool,
        typer.Option("--recover", help="Bring back a cluster of `ray up` that lost its head."),
    ] = False,
) -> None:
    """Start a fleet on this machine: object store, Ray head, autoscaler, process hosts.

    Its files go to `.rayburst/NAME` here. Hosts come when work asks for them.

    With `--recover` a cluster that `ray up` made and whose head is lost for good comes back on the
    machine that `head.ssh` of FILE names now; jobs that had not ended run again under their ids.
    """
    if recover:
        from rayburst.fleet.recover import recover as bring_back

        bring_back(file or Path("fleet.yaml"), say=_say)
        return
    from rayburst.dev.embedded import up as start
    from rayburst.fleet.spec import default_path

    fixed = {"dashboard": dashboard_port, "serve": serve_port}
    started = time.monotonic()
    fleet = start(
        file or default_path(),
        root=Path.cwd(),
        name=name,
        ports={role: port for role, port in fixed.items() if port is not None},
        say=_say,
    )
    state = fleet.read_state()
    _out.print(
        f"[bold green]fleet {fleet.name} is up[/] after {time.monotonic() - started:.0f} s\n"
        f"  dashboard   {state.dashboard_url} (it asks for the token in {fleet.token_file})\n"
        f'  Ray\'s own   eval "$(rayburst env {fleet.name})" && ray job submit -- python ...\n'
        f"  look        rayburst status {fleet.name}, rayburst top {fleet.name}\n"
        f"  metrics     http://{state.head_address}:{state.ports['books']}/metrics\n"
        f"  end it      rayburst down {fleet.name}",
        soft_wrap=True,
    )


@app.command()
def down(name: FleetName = None) -> None:
    """End a fleet: all its hosts and processes, and nothing else. Its stored data stays."""
    from rayburst.dev.embedded import down as end
    from rayburst.sdk import find_fleet

    fleet = find_fleet(name)
    if (fleet.path / "ship").is_dir():
        raise FleetExistsError(
            f"fleet {fleet.name!r} was made by `ray up`; end it from where that was called, with "
            f"`ray down` and the same file"
        )
    report = end(fleet)
    if not report.clean:
        raise RayburstError(f"fleet {fleet.name} left something behind: {', '.join(report.left)}")
    _out.print(
        f"[bold green]fleet {fleet.name} is down[/]: {report.processes_ended} processes ended, "
        f"{report.ports_closed} ports closed, none left. Checkpoints, events and logs stay in "
        f"{fleet.path}",
        soft_wrap=True,
    )


@app.command()
def status(name: FleetName = None) -> None:
    """Show nodes by pool and market, pending demand, jobs and cost so far."""
    from rayburst.sdk import connect

    platform = connect(name)
    fleet = platform.fleet()
    _out.print(fleet.table())
    from rayburst.fleet.status import summarised

    for text in summarised(fleet.pending):
        _out.print(f"  pending: {_plain(text)}")
    for text in fleet.decisions:
        _out.print(f"  {_plain(text)}")
    for text in fleet.problems:
        _out.print(f"[bold red]problem:[/] {_plain(text)}", soft_wrap=True)
    if not fleet.problems:
        for job in platform.jobs()[:10]:
            _out.print(f"  job {job.id}: {job.status}  {_plain(job.entrypoint)}")
        _out.print(f"  {_plain(platform.cost().summary())}")


@app.command()
def cost(
    name: FleetName = None,
    by: Annotated[
        str | None,
        typer.Option(help="Who paid, and what for: job, tenant, model, purpose, pool, day, ..."),
    ] = None,
    focus: Annotated[
        Path | None, typer.Option(help="Write the ledger here as a FOCUS 1.2 CSV.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what every node cost, from the event log on the object store.

    With `--by job` who paid for it and what for, from the ledger.
    """
    from rayburst.sdk import connect

    platform = connect(name)
    if focus is not None:
        _write_focus(platform, focus)
    if by is not None:
        statement = platform.cost(by=by)
        if as_json:
            typer.echo(json.dumps(statement.to_dict(), indent=2))
        else:
            _out.print(statement.table())
        return
    bill = platform.cost()
    if as_json:
        typer.echo(json.dumps(bill.to_dict(), indent=2))
    else:
        _out.print(bill.table())
        _out.print(f"  {_plain(bill.summary())}")


def _write_focus(platform: Platform, file: Path) -> None:
    from rayburst.cost.focus import to_focus

    text, left_out = to_focus(platform.ledger(), fleet=platform.name)
    file.write_text(text)
    note = "; what has no known price is left out" if left_out else ""
    _err.print(f"{file}: {len(text.splitlines()) - 1} rows of FOCUS 1.2{note}")


@app.command()
def queue(name: FleetName = None) -> None:
    """Show jobs: who runs where, who waits and for what, deadlines and money."""
    from rayburst.sdk import connect

    _out.print(connect(name).queue().table())


@app.command()
def report(
    name: FleetName = None,
    run: Annotated[
        str | None, typer.Option(help="A training run: its page instead of the fleet's.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Where the page goes; fleet.html or RUN.html by default.")
    ] = None,
    by: Annotated[
        str, typer.Option(help="Who paid: by job, tenant, model, purpose, pool, day, ...")
    ] = "job",
) -> None:
    """Write one page about the fleet, or with --run about a training run.

    Hosts, dollars and who paid for what; of a run its nodes, goodput, loss and what it would have
    cost elsewhere.
    """
    from rayburst.sdk import connect

    platform = connect(name)
    file = out or Path("fleet.html" if run is None else f"{run}.html")
    page = platform.timeline(by=by) if run is None else platform.run(run).report()
    file.write_text(page.html())
    _out.print(f"{file}: one file, nothing to load; light, dark and print")


@app.command()
def dashboard() -> None:
    """Print a Grafana dashboard over the fleet's metrics, to import there.

    `rayburst dashboard > rayburst.json`; `rayburst up` says where the metrics are.
    """
    from rayburst.report.grafana import dashboard as board

    typer.echo(json.dumps(board(), indent=1))


@app.command()
def events(
    name: FleetName = None,
    node: Annotated[str | None, typer.Option(help="Only this node.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Show the node event log: requested, up, notice, draining, gone, and why."""
    from dataclasses import asdict

    from rayburst.report.tables import Table
    from rayburst.sdk import connect

    found = [e for e in connect(name).events() if node in (None, e.node)]
    if as_json:
        for event in found:
            typer.echo(json.dumps(asdict(event)))
        return
    rows = [
        (time.strftime("%H:%M:%S", time.localtime(e.t)), e.node, e.market, e.kind, e.why)
        for e in found
    ]
    _out.print(Table("node events", ("time", "node", "market", "event", "why"), rows))


@app.command()
def logs(
    what: Annotated[
        str | None,
        typer.Argument(help="A job, a node, or agent, head, object-store, supervisor."),
    ] = None,
    fleet: FleetOption = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the job ends.")
    ] = False,
) -> None:
    """Print the log of a job, a node or a part of the fleet; without a name, list them."""
    from rayburst.sdk import connect, find_fleet

    folder = find_fleet(fleet).logs
    files = {file.stem: file for file in sorted(folder.rglob("*.log"))}
    if what is None:
        _out.print("parts: " + ", ".join(files))
        _out.print("jobs:  " + ", ".join(job.id for job in connect(fleet).jobs()))
    elif what in files:
        typer.echo(files[what].read_text(errors="replace"))
    elif follow:
        for line in connect(fleet).job(what).tail():
            typer.echo(line)
    else:
        typer.echo(connect(fleet).job(what).logs())


@app.command()
def interrupt(
    node: Annotated[str, typer.Argument(help="A node's name, as `rayburst status` shows it.")],
    notice: Annotated[
        str, typer.Option(help="Warning time such as 30s or 2m; 0 is a power cut.")
    ] = "30s",
    fleet: FleetOption = None,
) -> None:
    """Take a node away as a spot market does: notice, then the end at the deadline."""
    from rayburst.sdk import connect

    seconds = _seconds(notice)
    connect(fleet).interrupt(node, notice_s=seconds, why="rayburst interrupt")
    how = f"gets notice and is gone in {seconds:g} s" if seconds else "lost its power"
    _out.print(f"{node} {how}")


@app.command()
def market(
    pool: Annotated[str, typer.Argument(help="A pool's name, as in the fleet file.")],
    hosts: Annotated[
        int | None, typer.Option(min=0, help="Hosts it has from now on; without it, all.")
    ] = None,
    notice: Annotated[
        str, typer.Option(help="Warning time for hosts above that; 0 is a power cut.")
    ] = "30s",
    fleet: FleetOption = None,
) -> None:
    """Let a pool's market run dry, or come back: launches above it fail, hosts above it go."""
    from rayburst.sdk import connect

    taken = connect(fleet).market(pool, hosts=hosts, notice_s=_seconds(notice))
    what = "all hosts of the fleet file" if hosts is None else f"{hosts} host(s)"
    _out.print(
        f"the market of {pool} has {what}" + (f"; it takes {', '.join(taken)}" if taken else "")
    )


@app.command()
def env(name: FleetName = None) -> None:
    """Print the environment in which Ray's own commands reach the fleet.

    `eval "$(rayburst env)"`, then `ray job submit --working-dir . -- python jobs/train_lm.py`,
    `ray status`, `serve status` and S3 clients work as their own documentation says.
    """
    from rayburst.fleet.layout import launched_environment, user_environment
    from rayburst.sdk import find_fleet

    fleet = find_fleet(name)
    away = fleet.was_launched_from_here
    known = launched_environment(fleet) if away else user_environment(fleet, fleet.read_state())
    for key, value in known.items():
        typer.echo(f"export {key}={shlex.quote(value)}")


@app.command()
def submit(
    entrypoint: Annotated[
        list[str], typer.Argument(help="The command, after `--`: -- python jobs/train_lm.py")
    ],
    fleet: FleetOption = None,
    working_dir: Annotated[Path, typer.Option(help="The folder that goes with the job.")] = Path(),
    wait: Annotated[bool, typer.Option(help="Show its log and wait for its end.")] = True,
    deadline: Annotated[
        str | None, typer.Option(help="When it must be done: 6h from now, or 2026-01-31T18:00Z.")
    ] = None,
    budget: Annotated[str | None, typer.Option(help='What it may cost: "5 USD".')] = None,
    tenant: Annotated[str | None, typer.Option(help="Who it is for.")] = None,
    priority: Annotated[int | None, typer.Option(help="Higher goes first; 0 if absent.")] = None,
    floor: Annotated[int | None, typer.Option(help="Workers that must run at any time.")] = None,
    span: Annotated[str | None, typer.Option(help="Its workers lie in one zone, or any.")] = None,
    market: Annotated[
        str | None, typer.Option(help="auto, on-prem, spot (never on-demand), on-demand (always).")
    ] = None,
) -> None:
    """Submit a job with the rayburst package on board and follow it.

    `rayburst submit --deadline 6h --budget "5 USD" -- python jobs/train_lm.py --preset micro`
    """
    from rayburst.fleet.jobs import GivenTerms
    from rayburst.sdk import connect

    given = {"deadline": deadline, "budget": budget, "tenant": tenant, "priority": priority}
    given |= {"floor": floor, "span": span, "market": market}
    terms = cast(GivenTerms, {key: value for key, value in given.items() if value is not None})
    job = connect(fleet).submit(shlex.join(entrypoint), working_dir=working_dir, **terms)
    _out.print(f"job {job.id}")
    if wait:
        for line in job.tail():
            typer.echo(line)
        _out.print(f"job {job.id}: {job.wait()}")


@app.command()
def demo(
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the fleet up afterwards, to play with.")
    ] = False,
    name: Annotated[str, typer.Option(help="The demo fleet's name.")] = "demo",
) -> None:
    """Run the whole story: burst, train, lose nodes, finish, serve, count the cost.

    Takes about five minutes on two cores and writes `.rayburst/NAME/demo/report.html`.
    """
    from rayburst.dev.demo import run_demo

    run_demo(root=Path.cwd(), name=name, keep=keep, console=_out)


@fleet_app.command("explain")
def fleet_explain(
    name: FleetName = None,
    last: Annotated[int, typer.Option(help="How many of the newest decisions.")] = 20,
    about: Annotated[str | None, typer.Option(help="Only this job, pool or node.")] = None,
) -> None:
    """Say what the planner decided last, and why."""
    from rayburst.report.tables import Table
    from rayburst.sdk import connect

    found = connect(name).decisions(None if about else last)
    kept = [d for d in found if about in (None, d.subject)][-last:]
    rows = [
        (time.strftime("%H:%M:%S", time.localtime(d.t)), d.kind, d.subject, str(d.count), d.why)
        for d in kept
    ]
    _out.print(Table("decisions", ("time", "decision", "about", "count", "why"), rows))


@fleet_app.command("schema")
def fleet_schema() -> None:
    """Print the JSON Schema of fleet files, for editors."""
    from rayburst.fleet.schema import json_schema

    typer.echo(json.dumps(json_schema(), indent=2))


def _say(text: str) -> None:
    _out.print(f"  {_plain(text)}", soft_wrap=True)


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|)", text)
    if match is None or (match[2] == "" and float(match[1]) != 0):
        raise SpecError(f"--notice {text!r} is no duration; write 30s, 2m, or 0 for a power cut")
    return float(match[1]) * (60 if match[2] == "m" else 1)
