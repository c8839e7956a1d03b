"""A whole fleet on this machine: `up` and `down`.

    fleet = up(Path("cluster_configs/local.yaml"), root=Path.cwd(), say=print)
    down(fleet)

`up` starts a supervised S3 server, a real Ray head with autoscaler v2 and the agent; hosts come
when work asks for them. State is on disk before the first process is started, and every process
carries the fleet's mark, so `down` ends exactly what `up` started, whatever happened in between,
and proves it.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from secrets import token_hex

from rayburst.dev.objectstore import S3Server
from rayburst.errors import (
    FleetExistsError,
    FleetNotFoundError,
    SpecError,
    StartError,
)
from rayburst.fleet import processes
from rayburst.fleet.connections import system_config
from rayburst.fleet.files import tail, write_atomically
from rayburst.fleet.layout import FleetDir, FleetState, ray_environment
from rayburst.fleet.render import ray_config, to_yaml
from rayburst.fleet.serving import HAPROXY_PORTS
from rayburst.fleet.spec import FleetSpec
from rayburst.fleet.supervisor import AUTOSCALER_ENVIRONMENT, start_supervisor, wait_for_agent
from rayburst.fleet.teardown import DownReport, end_fleet, state_if_readable

Say = Callable[[str], None]

BUCKET = "fleet"
FAR_KINDS = ("ssh", "ec2")
_HEAD = "head"
_SUPERVISOR = "rayburst.dev.supervisor"
_LEAST_DISK_BYTES = 1024**3
_STORE_PORT_NAMES = ("store", "store_master", "store_volume", "store_filer")
_HEAD_PORT_NAMES = ("gcs", "dashboard", "dashboard_agent", "client", "serve", "metrics", "books")


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
    store = store_server(fleet, state) if state.store_is_embedded else None
    try:
        # store and head come up at once, and Ray takes ports that the kernel picks
        with processes.held(store.endpoints() if store else ()):
            start_supervisor(fleet, _SUPERVISOR)
            if store:
                say(f"object store: {state.store_uri} at {state.store_endpoint}")
            say(f"Ray head: {state.gcs_address}, dashboard {state.dashboard_url}")
            head = _spawn_head(fleet, state)
            if store:
                log = fleet.logs / "object-store.log"
                store.wait_until_ready(lambda: tail(log), timeout_s=90)
        if store:
            store.create_bucket(BUCKET)
        _wait_for_head(fleet, state, head)
        fleet.head_started_file.touch()
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
    if not processes.owned(fleet.path) and not fleet.path.exists():
        raise FleetNotFoundError(f"no fleet {fleet.name!r} here: {fleet.path} does not exist")
    state = state_if_readable(fleet)
    report = end_fleet(fleet, supervisor=_SUPERVISOR)
    if report.clean and state is not None:
        if state.ray_tmp:
            shutil.rmtree(state.ray_tmp, ignore_errors=True)
        if state.store_is_embedded:
            store_server(fleet, state).remove_sockets()
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
    proxys = tuple(HAPROXY_PORTS) if spec.serve.haproxy else ()
    names = (*_HEAD_PORT_NAMES, *_STORE_PORT_NAMES, *proxys)
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


def _spawn_head(fleet: FleetDir, state: FleetState) -> subprocess.Popen[bytes]:
    """`ray start`, which ends once the head runs."""
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
        f"--system-config={system_config()}",
        f"--temp-dir={state.ray_tmp}",
        "--min-worker-port=0",
        "--max-worker-port=0",
        "--object-store-memory=200000000",
        "--labels=rayburst.io/pool=head",
        "--disable-usage-stats",
    ]
    return processes.spawn(command, env=env, log=fleet.logs / "head.log")


def _wait_for_head(fleet: FleetDir, state: FleetState, process: subprocess.Popen[bytes]) -> None:
    for is_last in (False, True):
        try:
            code = process.wait(timeout=120)
        except subprocess.TimeoutExpired:
            code = None
        if code == 0:
            return
        # Ray gives its own processes 30 s, fixed; a busy machine may need a second try
        processes.cut(fleet.path, _HEAD)
        if not is_last:
            process = _spawn_head(fleet, state)
    raise StartError(f"Ray's head did not start in 2 tries; {tail(fleet.logs / 'head.log')}")
