"""What `ray up` and `ray down` run on the head, beside `ray start`.

    python -m rayburst.fleet.head prepare ~/.rayburst/NAME     # before `ray start`
    python -m rayburst.fleet.head start ~/.rayburst/NAME       # after it: agent and bookkeeper
    python -m rayburst.fleet.head hosts ~/.rayburst/NAME       # JSON, for the user's machine
    python -m rayburst.fleet.head end ~/.rayburst/NAME ID...   # give hosts back
    python -m rayburst.fleet.head down ~/.rayburst/NAME        # give all back, end all
    python -m rayburst.fleet.head recover ~/.rayburst/NAME     # after the loss of an earlier head

The fleet's folder on the head is laid out as that of `rayburst up`; what came from the user's
machine lies in `ship`. `prepare` ends what an earlier head of this fleet left on the machine, and
nothing else. A second run of any of these changes nothing more.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path

from rayburst.errors import (
    FleetBrokenError,
    FleetNotFoundError,
    PoolError,
    RayburstError,
    StoreError,
)
from rayburst.fleet import processes
from rayburst.fleet.cluster import PORTS, head_of
from rayburst.fleet.events import IMPATIENT, EventLog, NodeEvent
from rayburst.fleet.files import write_atomically
from rayburst.fleet.layout import FleetDir, FleetState, ray_environment
from rayburst.fleet.pools import open_pools
from rayburst.fleet.pools.ec2_join import forget_luggage
from rayburst.fleet.pools.ssh import SshPool
from rayburst.fleet.render import ray_config, to_yaml
from rayburst.fleet.spec import HEAD
from rayburst.fleet.store import open_store
from rayburst.fleet.submissions import forget_all, resubmit
from rayburst.fleet.supervisor import AUTOSCALER_ENVIRONMENT, start_supervisor, wait_for_agent
from rayburst.fleet.teardown import end_fleet, give_back_hosts

_AGENT_S = 90.0
_SUPERVISOR = "rayburst.fleet.supervisor"
_LOST = "lost with its head"
_SHIPPED = ("fleet.yaml", "token", "store.json")
_PRIVATE = ("token", "store.json")


def prepare(fleet: FleetDir) -> None:
    """Everything on disk that head, agent and `down` need, before the first process.

    Hosts of a head that ran before are given back: to a new one they would be strangers.
    """
    processes.end(processes.owned(fleet.path), grace_s=5.0)
    if fleet.state_file.exists():
        give_back_hosts(fleet, why="the head was made anew")
    ship = fleet.path / "ship"
    for name in _SHIPPED:
        if (ship / name).exists():
            data = (ship / name).read_bytes()
            write_atomically(fleet.path / name, data, private=name in _PRIVATE)
    spec = fleet.spec()
    state = FleetState(
        name=fleet.name,
        started_at=time.time(),
        subnet="",
        ports=PORTS,
        ray_tmp="",
        store_uri=str(spec.object_store.uri),
        store_endpoint=spec.object_store.endpoint,
        store_is_embedded=False,
        address=head_of(spec).ip,
    )
    fleet.write_state(state)
    write_atomically(fleet.autoscaling_file, to_yaml(ray_config(spec, fleet_dir=fleet.path)))
    for stale in (fleet.agent_file, fleet.head_started_file):
        stale.unlink(missing_ok=True)
    env = {
        **ray_environment(fleet, state),
        **AUTOSCALER_ENVIRONMENT,
        "AUTOSCALER_METRIC_PORT": str(PORTS["metrics"]),
        # later than the agent, which knows a launch that failed from a host that is not needed
        "RAY_AUTOSCALER_RECONCILE_ALLOCATE_STATUS_TIMEOUT_S": str(int(spec.limits.join_s) + 60),
        processes.OWNER_VARIABLE: str(fleet.path),
        processes.HOST_VARIABLE: HEAD,
    }
    lines = [f"export {key}={shlex.quote(value)}\n" for key, value in env.items()]
    write_atomically(fleet.path / "env", "".join(lines), private=True)


def start(fleet: FleetDir) -> None:
    """Start the agent and the bookkeeper under their supervisor. Raises StartError.

    What an earlier head of the fleet left elsewhere is cleared: see `clear`.
    """
    fleet.head_started_file.touch()
    start_supervisor(fleet, _SUPERVISOR, **{processes.HOST_VARIABLE: HEAD})
    wait_for_agent(fleet, timeout_s=_AGENT_S)
    try:
        for line in clear(fleet):
            sys.stdout.write(f"{line}\n")
    except (PoolError, StoreError) as error:  # the cluster is up all the same
        sys.stderr.write(f"what an earlier head left could not be cleared: {error}\n")


def clear(fleet: FleetDir) -> list[str]:
    """Give back what only a lost head knew, and write down its end; what was done, in words.

    Machines are found by their leases. Instances of EC2 are not lost: their tags are the record.
    """
    pools = open_pools(fleet)
    ssh = [pool for pool in pools.values() if isinstance(pool, SshPool)]
    done = [f"gave back {host}, which a lost head had" for pool in ssh for host in pool.reap()]
    known = {host.id for pool in pools.values() for host in pool.hosts()}
    log = EventLog(open_store(fleet, IMPATIENT), spool=fleet.spool)
    open_ends: dict[str, NodeEvent] = {}
    for event in log.read():
        if event.kind == "gone":
            open_ends.pop(event.node, None)
        else:
            open_ends[event.node] = event
    for node in open_ends.keys() - known:
        end = replace(open_ends[node], t=time.time(), kind="gone", why=_LOST, deadline=None)
        log.append(end)
    return done


def hosts(fleet: FleetDir) -> list[dict[str, object]]:
    """The living hosts of all pools, and what a machine is still owed."""
    found = [host for pool in open_pools(fleet).values() for host in pool.hosts()]
    return [
        {"id": host.id, "address": host.address, "tags": dict(host.tags)}
        for host in found
        if host.lives
    ]


def end(fleet: FleetDir, names: list[str]) -> None:
    """Give these hosts back."""
    pools = open_pools(fleet)
    for name in names:
        for pool in pools.values():
            pool.terminate(name, why="ended by `ray down`")


def down(fleet: FleetDir) -> None:
    """Give all hosts back and end what runs on the head.

    Raises:
        FleetBrokenError: something is left; says what.
    """
    with contextlib.suppress(FleetNotFoundError, StoreError):
        forget_all(open_store(fleet))
        forget_luggage(open_store(fleet), fleet.name)
    report = end_fleet(fleet, supervisor=_SUPERVISOR)
    if not report.clean:
        raise FleetBrokenError(f"left behind: {', '.join(report.left)}")
    shutil.rmtree(fleet.path / "ship", ignore_errors=True)
    for name in ("env", "store.json"):
        (fleet.path / name).unlink(missing_ok=True)


def recover(fleet: FleetDir) -> list[str]:
    """Submit again, by the same ids, the jobs of a lost head that had not ended; in words."""
    from ray.job_submission import JobSubmissionClient

    from rayburst.fleet._ray_hooks import Gcs

    state = fleet.read_state()
    headers = {"Authorization": f"Bearer {fleet.token()}"}
    client = JobSubmissionClient(state.dashboard_url, headers=headers)
    jobs = resubmit(open_store(fleet), Gcs(state.gcs_address), client.submit_job)
    return [f"submitted {job} again" for job in jobs]


def main(verb: str, folder: str, *names: str) -> int:
    fleet = FleetDir(Path(folder).expanduser().resolve())
    try:
        if verb == "hosts":
            sys.stdout.write(json.dumps(hosts(fleet)) + "\n")
        elif verb == "end":
            end(fleet, list(names))
        elif verb == "recover":
            sys.stdout.write("".join(f"{line}\n" for line in recover(fleet)))
        else:
            {"prepare": prepare, "start": start, "down": down}[verb](fleet)
    except FleetNotFoundError:
        if verb == "hosts":
            sys.stdout.write("[]\n")
        return 0  # nothing is up: nothing to list, nothing to end
    except RayburstError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
