"""`rayburst dev cloud`: a cloud in a box from the command line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rayburst.report.tables import Table

app = typer.Typer(
    no_args_is_help=True,
    help="A cloud in a box: EC2 instances that are hosts of this machine, with a spot market.\n\n"
    "Try a policy before you pay for it: instances launched through the endpoint are namespaces "
    "with an address, an SSH server, user data and a metadata service of their own; capacity, "
    "prices, notices and refusals follow a recorded trace or a script, at any speed.\n\n"
    "**Needs root** on Linux, with iproute2 and openssh-server. This machine's own network is not "
    "touched, and all of it ends with `down`.",
)
Folder = Annotated[Path, typer.Option(help="Where its keys, logs and status are.")]
_FOLDER = Path(".rayburst-cloud")


@app.command()
def up(
    trace: Annotated[
        Path | None,
        typer.Option(help="A recorded market: JSON of one zone each, their folder, or a CSV."),
    ] = None,
    script: Annotated[
        Path | None, typer.Option(help="Steps in YAML: {at: 60s, capacity: 0, zone: us-east-1a}.")
    ] = None,
    speed: Annotated[
        float, typer.Option(min=0.001, help="Seconds of trace and script in a real one.")
    ] = 1.0,
    zones: Annotated[int, typer.Option(min=1, max=6, help="Zones, each with a subnet.")] = 3,
    per_zone: Annotated[
        int, typer.Option(min=1, help="Spot instances of a zone that the trace says is there.")
    ] = 4,
    store: Annotated[bool, typer.Option(help="An object store inside of it.")] = True,
    hosts: Annotated[int, typer.Option(min=0, help="Machines on-prem beside the cloud.")] = 0,
    notice: Annotated[
        float, typer.Option(min=0, help="Real seconds of warning; 0 is a power cut.")
    ] = 120.0,
    folder: Folder = _FOLDER,
) -> None:
    """Start a cloud: an EC2 endpoint, its network, and machines on-prem if asked for.

    `rayburst dev cloud up --trace zones-2023-02 --zones 4 --speed 600 --hosts 2`

    Without a trace and a script every launch succeeds and nothing is taken. It prints what a
    fleet file's pools need; commands inside of it are run by `rayburst dev cloud run -- COMMAND`.
    """
    from rayburst.dev.cloud import daemon

    told = daemon.up(
        folder,
        daemon.Options(
            zones=zones,
            hosts=hosts,
            trace=str(trace.resolve()) if trace else "",
            per_zone=per_zone,
            script=str(script.resolve()) if script else "",
            speed=speed,
            notice_s=notice,
            store=store,
        ),
    )
    typer.echo(_told(told, folder))


def _told(told: dict[str, Any], folder: Path) -> str:
    subnets, store = ", ".join(told["subnets"].values()), told["store"]
    lines = [
        f"a cloud is up in {folder}",
        f"  EC2 here       {told['endpoint_here']}   (any credentials)",
        f"  EC2 in the box {told['endpoint']}",
        *([f"  object store   {store['uri']} at {store['endpoint']}"] if store else []),
        *(f"  {zone}     plays {name}" for zone, name in told["traces"].items()),
        *(f"  on-prem        {host['name']} at {host['address']}" for host in told["hosts"]),
        f"  inside         rayburst dev cloud run -- ssh -i {told['key']} root@ADDRESS",
        "  look, end      rayburst dev cloud status, rayburst dev cloud down",
        "a pool of it in a fleet file:",
        "  - {name: spot, kind: ec2, market: spot, shape: {cpus: 2, memory: 8GiB}, price: unknown,",
        f"     region: {told['region']}, hosts: {{max: 4}},",
        f"     ec2: {{types: [m6i.large], image: {told['image']}, subnets: [{subnets}],",
        f"           endpoint: '{told['endpoint']}'}}}}",
    ]
    return "\n".join(lines)


@app.command()
def status(folder: Folder = _FOLDER) -> None:
    """Show its instances, what the market has, and how far trace and script are."""
    from rich.console import Console

    from rayburst.dev.cloud import daemon

    told = daemon.status(folder)
    console = Console(highlight=False)
    console.print(_instances(told))
    for place, most in told["capacity"].items():
        console.print(f"  capacity {place}: {most}")
    done = ", done" if told["script_done"] else ""
    console.print(f"  trace and script: {told['script_s']:.0f} s{done}; {told['calls']} API calls")


def _instances(told: dict[str, Any]) -> Table:
    from rayburst.report.tables import Table

    rows = [(host["name"], "on-prem", "", host["address"], "up", "") for host in told["hosts"]]
    for one in told["instances"]:
        state = "up" if one["pid"] else "starting"
        notice = "" if one["reclaimed_at"] is None else "taken soon"
        place = f"{one['kind']} {one['zone']}"
        rows.append((one["id"], one["market"], place, one["address"], state, notice))
    return Table("hosts", ("host", "market", "place", "address", "state", "notice"), rows)


@app.command()
def run(
    command: Annotated[list[str], typer.Argument(help="A command, after `--`.")],
    host: Annotated[
        str | None, typer.Option(help="On this host, without SSH; else at the router.")
    ] = None,
    folder: Folder = _FOLDER,
) -> None:
    """Run a command inside, from where all hosts can be reached: `-- ray up fleet.yaml`.

    Process ids, network and, on a host, files are the box's: what `ray up` or `ray stop` ends is
    there and nowhere else. The keys of the object store inside are in its environment.
    """
    from rayburst.dev.cloud import daemon
    from rayburst.dev.cloud.box import enter
    from rayburst.errors import NodeNotFoundError

    told = daemon.status(folder)
    pids = {one["name"]: one["pid"] for one in told["hosts"]}
    pids |= {one["id"]: one["pid"] for one in told["instances"] if one["pid"]}
    if host is not None and host not in pids:
        raise NodeNotFoundError(f"no host {host!r} is up; there are: {', '.join(pids) or 'none'}")
    os.environ.update(daemon.store_environment(folder))
    pid = told["router_pid"] if host is None else pids[host]
    # whoever enters lands in the root folder; where this one is there, it is meant
    there = ["sh", "-c", 'cd "$0" 2>/dev/null; exec "$@"', str(Path.cwd()), *command]
    words = enter(pid, there)
    os.execvp(words[0], words)


@app.command()
def down(folder: Folder = _FOLDER) -> None:
    """End it: every instance, host, process and address, and prove it."""
    from rayburst.dev.cloud import daemon
    from rayburst.errors import FleetBrokenError

    report = daemon.down(folder)
    if report.left:
        raise FleetBrokenError(f"left behind: {', '.join(report.left)}")
    typer.echo(f"the cloud in {folder} is down: {report.ended} processes ended, none left")
