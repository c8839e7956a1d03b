"""What a machine needs to become a node of a cluster: a tar with its first process's orders.

    machine.join(host.id, pack_luggage(fleet, host))

Unpacked in `~/.rayburst/hosts/ID` of the machine: `node.json` (whom to join, as what), Ray's token,
the package's wheel and `join.sh`, which runs the fleet file's setup and then `fleet.node`. All of
it is readable for its user only, and goes when the machine is given back. Starts nothing.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from rayburst.fleet.layout import FleetDir, store_environment
from rayburst.fleet.pools.base import Host
from rayburst.fleet.render import node_labels
from rayburst.fleet.serving import serve_environment
from rayburst.fleet.spec import FleetSpec

OWNER, IMDS = "owner", "imds"
_NOTICE = "notice/"
_DRAINED = "drained/"
_JOIN = """\
export RAYBURST_SHIP=$PWD
( set -e
{setup}
) >setup.log 2>&1 || {{ printf 'its setup failed: %s' "$(tail -n 1 setup.log)" >ended; exit 1; }}
{python} -m rayburst.fleet.node "$PWD" >node.log 2>&1
code=$?
test -e ended || printf 'its first process ended with %s: %s' "$code" "$(tail -n 1 node.log)" >ended
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeOrders:
    """What a host's first process is told.

    Attributes:
        address: the machine's own, under which the cluster reaches it.
        gcs_address: of the head, HOST:PORT.
        environment: of everything on the host: how the object store is reached.
        notices: where they appear: "owner" (a file of the machine's owner) or "imds" (EC2).
        rebalance_s: time to leave after EC2's rebalance recommendation; None: it is not heeded.
    """

    host: str
    pool: str
    address: str
    gcs_address: str
    cpus: int
    gpus: int
    memory_bytes: int
    labels: Mapping[str, str]
    environment: Mapping[str, str]
    notices: str
    rebalance_s: float | None = None


def notice_key(host: str) -> str:
    """Where a host's watcher leaves its notice for the agent."""
    return f"{_NOTICE}{host}"


def drained_key(host: str) -> str:
    """Where it leaves when Ray took the drain, in unix seconds."""
    return f"{_DRAINED}{host}"


def node_orders(fleet: FleetDir, host: Host, *, notices: str) -> NodeOrders:
    """What the first process of `host` is told; `notices` as NodeOrders has it."""
    state, pool = fleet.read_state(), fleet.spec().pool(host.pool)
    return NodeOrders(
        host=host.id,
        pool=host.pool,
        address=host.address,
        gcs_address=state.gcs_address,
        cpus=pool.shape.cpus,
        gpus=pool.shape.gpus,
        memory_bytes=pool.shape.memory_bytes,
        labels={**node_labels(pool), "rayburst.io/host": host.id},
        environment={
            **store_environment(fleet, state),
            **serve_environment(fleet.spec(), state.ports, given=os.environ),
        },
        notices=notices,
    )


def pack_luggage(fleet: FleetDir, orders: NodeOrders) -> bytes:
    """The tar for a machine."""
    files = {
        "node.json": json.dumps(asdict(orders)).encode(),
        "token": fleet.token().encode(),
        "join.sh": join_script(fleet.spec()).encode(),
    }
    files |= {wheel.name: wheel.read_bytes() for wheel in (fleet.path / "ship").glob("*.whl")}
    with io.BytesIO() as buffer:
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for name, data in files.items():
                entry = tarfile.TarInfo(name)
                entry.size, entry.mode = len(data), 0o600
                tar.addfile(entry, io.BytesIO(data))
        return buffer.getvalue()


def join_script(spec: FleetSpec) -> str:
    """What a machine runs, in the folder of its luggage."""
    return _JOIN.format(
        setup="\n".join(spec.software.commands) or "true", python=spec.software.python
    )
