"""`rayburst watch`: on an EC2 spot node of any Ray cluster, turns its notice into Ray's drain."""

from __future__ import annotations

import os
import socket
import time
from typing import Annotated

import typer

from rayburst.errors import FleetError

_POLL_S = 1.0


def watch(
    address: Annotated[
        str, typer.Option(envvar="RAY_ADDRESS", help="The head's address, as `ray start` takes it.")
    ] = "",
    node_ip: Annotated[str, typer.Option(help="This node's address; found when left out.")] = "",
    imds: Annotated[
        str, typer.Option(help="The machine's metadata service.")
    ] = "http://169.254.169.254",
    rebalance: Annotated[
        float | None,
        typer.Option(
            min=1, help="Seconds to leave after a rebalance recommendation; else ignored."
        ),
    ] = None,
) -> None:
    """Drain this node of a Ray cluster when EC2 takes its spot instance back. Runs until ended.

    Ray itself reads no notice. Start it on every spot node after `ray start`:
    `rayburst watch --address HEAD:6379 &`. It asks the metadata service once a second, with a
    token, and Ray's drain gets the notice's own deadline: Ray places nothing more on the node and
    Ray Train learns of the loss before it happens.
    """
    from rayburst.fleet._ray_hooks import Gcs, drain_host
    from rayburst.fleet.interruptions import ImdsNoticeSource, Watcher
    from rayburst.fleet.pools.base import Notice

    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise FleetError(
            f"--address {address!r} is no address of a Ray head; write HOST:PORT, as in "
            f"`rayburst watch --address 10.0.0.1:6379`"
        )
    own = node_ip or _address_towards(host, int(port))
    gcs = Gcs(address)

    def drain(notice: Notice) -> bool:
        done = drain_host(gcs, "", notice, address=own)
        told = "Ray drains it" if done else f"Ray has no node at {own}, or does not answer"
        left_s = notice.deadline - time.time()
        due = f"{left_s:.0f} s from now" if left_s >= 0.5 else "at once"
        typer.echo(f"{notice.why}, {due}: {told}")
        return done

    watcher = Watcher(ImdsNoticeSource(endpoint=imds, rebalance_s=rebalance), drain)
    typer.echo(f"process {os.getpid()} watches {imds} for the node at {own}")
    while True:
        watcher.step()
        time.sleep(_POLL_S)


def _address_towards(host: str, port: int) -> str:
    """The address that this machine has on the way to another. Sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, port))
        address: str = probe.getsockname()[0]
        return address
