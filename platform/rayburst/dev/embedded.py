"""A whole fleet on this machine: `up` and `down`.

    fleet = up(Path("cluster_configs/local.yaml"), root=Path.cwd(), say=print)
    down(fleet)

`up` starts a supervised S3 server, a real Ray head with autoscaler v2 and the agent; hosts come
when work asks for them. State is on disk before the first process is started, and every process
carries the fleet's mark, so `down` ends exactly what `up` started, whatever happened in between,
and proves it.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex

import psutil

from rayburst.dev.objectstore import S3Server
from rayburst.errors import (
    FleetBrokenError,
    FleetExistsError,
    FleetNotFoundError,
    SpecError,
    StartError,
)
from rayburst.fleet import processes
from rayburst.fleet.events import IMPATIENT, EventLog
from rayburst.fleet.files import read_json, write_atomically
from rayburst.fleet.layout import FleetDir, FleetState, ray_environment
from rayburst.fleet.observer import events_of
from rayburst.fleet.pools import open_pools
from rayburst.fleet.render import ray_config, to_yaml
from rayburst.fleet.spec import FleetSpec
from rayburst.fleet.store import open_store

Say = Callable[[str], None]

HEAD_STARTED = "head-started"
BUCKET = "fleet"
FAR_KINDS = ("ssh", "ec2")
AUTOSCALER_ENVIRONMENT = {
    "RAY_enable_autoscaler_v2": "1",
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    "RAY_AUTOSCALER_RECONCILE_ALLOCATE_STATUS_TIMEOUT_S": "120",
    # Pools are closed on purpose: else each job's log says every second what Ray would launch.
    "RAY_SCHEDULER_EVENTS": "0",
    # Packages of jobs and applications are kept for as long as the fleet is up: a replica that
    # moves to another node fetches them again.
    "RAY_RUNTIME_ENV_TEMPORARY_REFERENCE_EXPIRATION_S": str(10 * 365 * 86_400),
    # A dead process refuses the connection at once: asking each second finds it in 5 s instead
    # of 15. A paused one still has Ray's full time-out for every answer.
    "RAY_health_check_period_ms": "1000",
}
"""What Ray's head needs in its environment, here and on a machine of its own."""
_HEAD = "head"
_HEAD_TRIES = 2
_GIVE_BACK_S = 20.0
_LEAST_DISK_BYTES = 1024**3
_STORE_PORT_NAMES = ("store", "store_master", "store_volume", "store_filer")
_HEAD_PORT_NAMES = ("gcs", "dashboard", "dashboard_agent", "client", "serve", "metrics", "books")


@dataclass(frozen=True, kw_only=True, slots=True)
class DownReport:
    """What `down` ended, and the proof: both lists of survivors are empty."""

    processes_ended: int
    ports_closed: int
    processes_left: tuple[str, ...]
    ports_left: tuple[str, ...]
    machines_left: tuple[str, ...] = ()
    """Machines that could not be given back, since they did not answer."""

    @property
    def left(self) -> tuple[str, ...]:
        """All that survived, in words."""
        return (*self.processes_left, *self.ports_left, *self.machines_left)

    @property
    def clean(self) -> bool:
        return not self.left


def fleet_dir(root: Path, name: str) -> FleetDir:
    """Where the fleet `name` of the folder `root` lives."""
    return FleetDir(root.resolve() / ".rayburst" / name)


def up(
    spec_file: Path,
    *,
    root: Path,
    name: str | None = None,
    ports: Mapping[str, int] | None = None,
    say: Say = lambda _: None,
    clock: Callable[[], float] = time.time,
) -> FleetDir:
    """Start the fleet of `spec_file` under `root/.rayburst/NAME`.

    Args:
        name: instead of the fleet file's own, to have two of one file.
        ports: fixed ports by role ("dashboard", "serve"); the others are found free.
        say: told what happens, line by line.

    Raises:
        SpecError: the fleet file cannot be used.
        FleetExistsError: a fleet of this name is up.
        StartError: a part did not start; everything that did was ended again.
    """
    spec = FleetSpec.load(spec_file)
    _refuse_far_hosts(spec, spec_file)
    fleet = fleet_dir(root, name or spec.name)
    _refuse_if_up(fleet)
    _need_disk(fleet.path)
    state = _prepare(fleet, spec, spec_file, ports or {}, clock())
    try:
        env = {**os.environ, **_marks(fleet)}
        processes.spawn(
            [sys.executable, "-m", "rayburst.dev.supervisor", str(fleet.path)],
            env=env,
            log=fleet.logs / "supervisor.log",
        )
        if state.store_is_embedded:
            say(f"object store: {state.store_uri} at {state.store_endpoint}")
            store_server(fleet, state).wait_until_ready(
                lambda: _tail(fleet.logs / "object-store.log"), timeout_s=90
            )
            store_server(fleet, state).create_bucket(BUCKET)
        say(f"Ray head: {state.gcs_address}, dashboard {state.dashboard_url}")
        _start_head(fleet, state)
        (fleet.path / HEAD_STARTED).touch()
        say("agent: planner and autoscaler v2")
        wait_for_agent(fleet, timeout_s=90)
    except BaseException:
        down(fleet)
        raise
    return fleet


def store_server(fleet: FleetDir, state: FleetState) -> S3Server:
    """The fleet's embedded object store."""
    ports = [state.ports[name] for name in _STORE_PORT_NAMES]
    return S3Server(fleet.path / "store", address=state.head_address, ports=ports)


def down(fleet: FleetDir) -> DownReport:
    """End everything of a fleet: hosts, head, agent, store; keep its data, logs and events.

    Works after a crash of `up`, with a damaged state file, and when half of it is dead already.
    """
    found = processes.owned(fleet.path)
    if not found and not fleet.path.exists():
        raise FleetNotFoundError(f"no fleet {fleet.name!r} here: {fleet.path} does not exist")
    state = _state_if_readable(fleet)
    ports = _ports_of(found, state)
    _end_roles(found, "rayburst.dev.supervisor", "rayburst.fleet.agent")
    machines_left: tuple[str, ...] = ()
    if state is not None:
        with contextlib.suppress(FleetBrokenError):
            machines_left = give_back_hosts(fleet, why="the fleet went down")
    left = processes.end(processes.owned(fleet.path), grace_s=2.0)
    left += processes.end(processes.owned(fleet.path), grace_s=0.0)  # born while we were killing
    open_ports = processes.wait_until_closed(ports, timeout_s=10)
    report = DownReport(
        processes_ended=len(found),
        ports_closed=len(ports) - len(open_ports),
        processes_left=tuple(f"{p.pid} {p.name()}" for p in left),
        ports_left=tuple(f"{address}:{port}" for address, port in open_ports),
        machines_left=machines_left,
    )
    if report.clean:
        _remove_leftovers(fleet, state)
    return report


def _marks(fleet: FleetDir) -> dict[str, str]:
    return {processes.OWNER_VARIABLE: str(fleet.path)}


def _refuse_if_up(fleet: FleetDir) -> None:
    running = processes.owned(fleet.path)
    if running:
        raise FleetExistsError(
            f"fleet {fleet.name!r} is up ({len(running)} processes, {fleet.path}); see it with "
            f"`rayburst status {fleet.name}`, end it with `rayburst down {fleet.name}`, or start "
            f"another beside it with `rayburst up --name OTHER`"
        )
    if fleet.state_file.exists():
        down(fleet)  # the machine or the fleet died: clear what is left of it


def _refuse_far_hosts(spec: FleetSpec, file: Path) -> None:
    far = [pool.name for pool in spec.pools if pool.kind in FAR_KINDS and pool.max_hosts > 0]
    if far:
        raise SpecError(
            f"{file}: hosts of {', '.join(far)} are other machines, and the head of a fleet on "
            f"this machine listens on loopback, where they cannot join it; for `ray up` write "
            f"`rayburst fleet render {file} --to ray-up > cluster.yaml`, or close these pools with "
            f"`hosts: {{max: 0}}`"
        )


def _need_disk(path: Path) -> None:
    path.mkdir(parents=True, exist_ok=True)
    for place in (path, Path("/tmp")):
        free = shutil.disk_usage(place).free
        if free < _LEAST_DISK_BYTES:
            raise StartError(
                f"{place} has {free / 1024**2:.0f} MiB free, a fleet needs at least "
                f"{_LEAST_DISK_BYTES / 1024**2:.0f} MiB; free some or call `up` from another disk"
            )


def _prepare(
    fleet: FleetDir, spec: FleetSpec, spec_file: Path, fixed: Mapping[str, int], now: float
) -> FleetState:
    """Everything on disk that `down` needs, before the first process."""
    subnet = _free_subnet()
    names = (*_HEAD_PORT_NAMES, *_STORE_PORT_NAMES)
    ports = dict(zip(names, processes.free_ports(len(names), f"{subnet}.1"), strict=True))
    for role, port in fixed.items():
        ports[role] = _claim(role, port, f"{subnet}.1")
    embedded = spec.object_store.uri is None
    endpoint = f"http://{subnet}.1:{ports['store']}" if embedded else spec.object_store.endpoint
    state = FleetState(
        name=fleet.name,
        started_at=now,
        subnet=subnet,
        ports=ports,
        ray_tmp=f"/tmp/rb-{token_hex(4)}",
        store_uri=f"s3://{BUCKET}" if embedded else str(spec.object_store.uri),
        store_endpoint=endpoint,
        store_is_embedded=embedded,
    )
    write_atomically(fleet.path / "fleet.yaml", spec_file.read_text())
    write_atomically(fleet.token_file, token_hex(32), private=True)
    if embedded:
        server = store_server(fleet, state)
        server.write_config()
        keys = {k: v for k, v in server.environment().items() if k != "AWS_ENDPOINT_URL"}
        write_atomically(fleet.path / "store.json", json.dumps(keys), private=True)
    write_atomically(fleet.autoscaling_file, to_yaml(ray_config(spec, fleet_dir=fleet.path)))
    fleet.write_state(state)
    return state


def _free_subnet() -> str:
    """A part of 127.0.0.0/8 of the fleet's own: hosts get addresses in it without collisions."""
    generator = random.SystemRandom()
    return f"127.{generator.randrange(20, 250)}.{generator.randrange(1, 250)}"


def _claim(role: str, port: int, address: str) -> int:
    if processes.listening(address, port) or processes.listening("127.0.0.1", port):
        raise StartError(
            f"port {port} for {role} is taken; leave the option out and a free one is found, or "
            f"see who has it with `ss -ltnp 'sport = :{port}'`"
        )
    return port


def _start_head(fleet: FleetDir, state: FleetState) -> None:
    env = {
        **os.environ,
        **ray_environment(fleet, state),
        **_marks(fleet),
        processes.HOST_VARIABLE: _HEAD,
        **AUTOSCALER_ENVIRONMENT,
        "AUTOSCALER_METRIC_PORT": str(state.ports["metrics"]),
        "RAY_CLOUD_INSTANCE_ID": "head",
        "RAY_NODE_TYPE_NAME": "head",
    }
    spec = fleet.spec()
    command = [
        str(Path(sys.executable).parent / "ray"),
        "start",
        "--head",
        f"--node-ip-address={state.head_address}",
        f"--port={state.ports['gcs']}",
        f"--dashboard-host={state.head_address}",
        f"--dashboard-port={state.ports['dashboard']}",
        f"--dashboard-agent-listen-port={state.ports['dashboard_agent']}",
        f"--ray-client-server-port={state.ports['client']}",
        f"--autoscaling-config={fleet.autoscaling_file}",
        f"--num-cpus={spec.head.cpus}",
        "--num-gpus=0",
        f"--temp-dir={state.ray_tmp}",
        "--min-worker-port=0",
        "--max-worker-port=0",
        "--object-store-memory=200000000",
        "--labels=rayburst.io/pool=head",
        "--disable-usage-stats",
    ]
    log = fleet.logs / "head.log"
    for _ in range(_HEAD_TRIES):
        process = processes.spawn(command, env=env, log=log)
        try:
            code = process.wait(timeout=120)
        except subprocess.TimeoutExpired:
            code = None
        if code == 0:
            return
        # Ray gives its own processes 30 s, fixed; a busy machine may need a second try
        processes.cut(fleet.path, _HEAD)
    raise StartError(f"Ray's head did not start in {_HEAD_TRIES} tries; {_tail(log)}")


def wait_for_agent(fleet: FleetDir, *, timeout_s: float) -> None:
    """Wait until the agent has seen Ray's head. Raises StartError."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        status = read_json(fleet.agent_file)
        if status and status["head_answers"]:
            return
        time.sleep(0.1)
    raise StartError(
        f"the agent did not reach Ray's head within {timeout_s:.0f} s; "
        f"{_tail(fleet.logs / 'agent.log')}"
    )


def _tail(log: Path, lines: int = 15) -> str:
    if not log.exists():
        return f"its log {log} is empty"
    text = log.read_text(errors="replace").splitlines()[-lines:]
    return f"the end of {log}:\n" + "\n".join(f"  {line}" for line in text)


def _state_if_readable(fleet: FleetDir) -> FleetState | None:
    try:
        return fleet.read_state()
    except (FleetBrokenError, FleetNotFoundError):
        return None


def _ports_of(found: list[psutil.Process], state: FleetState | None) -> list[tuple[str, int]]:
    """Every port that the fleet's processes listen on now, and those its state names."""
    ports = set()
    for process in found:
        with contextlib.suppress(psutil.Error):
            for connection in process.net_connections(kind="tcp"):
                if connection.status == psutil.CONN_LISTEN:
                    ports.add((_reachable(connection.laddr.ip, state), connection.laddr.port))
    if state is not None:
        ports |= {(state.head_address, port) for port in state.ports.values()}
    return sorted(ports)


def _reachable(address: str, state: FleetState | None) -> str:
    if address in ("0.0.0.0", "::"):
        return state.head_address if state else "127.0.0.1"
    return address.removeprefix("::ffff:")


def _end_roles(found: list[psutil.Process], *modules: str) -> None:
    roles = []
    for process in found:
        with contextlib.suppress(psutil.Error):
            if any(module in process.cmdline() for module in modules):
                roles.append(process)
    processes.end(roles, grace_s=2.0)


def give_back_hosts(fleet: FleetDir, *, why: str) -> tuple[str, ...]:
    """Terminate hosts and journal their ends while the object store still answers.

    Returns what could not be given back.
    """
    log = EventLog(open_store(fleet, IMPATIENT), spool=fleet.spool)
    spec = fleet.spec()
    for pool in open_pools(fleet).values():
        for host in pool.hosts():
            if host.lives:
                pool.terminate(host.id, why=why)
        for host in pool.hosts():
            for event in events_of(host, spec.pool(pool.name)):
                log.append(event)
            pool.forget(host.id)
    log.flush()
    return _wait_for_machines(fleet)


def _wait_for_machines(fleet: FleetDir) -> tuple[str, ...]:
    """Those of `ssh` pools that do not take their hosts' end; they stay on record until they do."""
    spec, deadline = fleet.spec(), time.monotonic() + _GIVE_BACK_S
    machines = [pool for pool in open_pools(fleet).values() if spec.pool(pool.name).kind == "ssh"]
    while left := [(pool, host) for pool in machines for host in pool.hosts()]:
        if time.monotonic() > deadline:
            return tuple(f"{host.id}: {host.address} does not answer" for _, host in left)
        for pool, host in left:
            pool.forget(host.id)
        time.sleep(0.2)
    return ()


def _remove_leftovers(fleet: FleetDir, state: FleetState | None) -> None:
    if state is not None:
        if state.ray_tmp:
            shutil.rmtree(state.ray_tmp, ignore_errors=True)
        if state.store_is_embedded:
            store_server(fleet, state).remove_sockets()
    for folder in ("hosts", "failures", "market"):
        shutil.rmtree(fleet.path / folder, ignore_errors=True)
    files = (
        "agent.json",
        "spent.json",
        "autoscaling.yaml",
        "openings.json",
        "openings.lock",
        "hosts.lock",
    )
    for file in (HEAD_STARTED, "token", *files):
        (fleet.path / file).unlink(missing_ok=True)
    fleet.state_file.unlink(missing_ok=True)
