"""Ends a fleet: its hosts, its processes, its ports; and proves it.

    report = end_fleet(fleet, supervisor="rayburst.fleet.supervisor")

Every process of a fleet carries the fleet's mark in its environment, so what is ended is the
fleet's and nothing else, whatever happened before. Deliberately does not know: whether the fleet is
of this machine alone (`dev.embedded`) or one of `ray up` (`fleet.head`).
"""

from __future__ import annotations

import contextlib
import shutil
import time
from dataclasses import dataclass

import psutil

from rayburst.errors import FleetBrokenError, FleetNotFoundError
from rayburst.fleet import processes
from rayburst.fleet.events import IMPATIENT, EventLog
from rayburst.fleet.layout import FleetDir, FleetState
from rayburst.fleet.observer import events_of
from rayburst.fleet.pools import open_pools
from rayburst.fleet.store import open_store

_GIVE_BACK_S = 20.0
_FOLDERS = ("hosts", "failures", "market")
_FILES = (
    "token",
    "agent.json",
    "spent.json",
    "autoscaling.yaml",
    "openings.json",
    "openings.lock",
    "hosts.lock",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class DownReport:
    """What `down` ended, and the proof: the lists of survivors are empty."""

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


def end_fleet(fleet: FleetDir, *, supervisor: str) -> DownReport:
    """End everything of a fleet: hosts, head, agent; keep its data, logs and events.

    Works after a crash of `up`, with a damaged state file, and when half of it is dead already.

    Args:
        supervisor: the module that keeps the fleet's processes alive, and so is ended first.
    """
    found = processes.owned(fleet.path)
    state = state_if_readable(fleet)
    ports = _ports_of(found, state)
    _end_roles(found, supervisor, "rayburst.fleet.agent")
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
        for folder in _FOLDERS:
            shutil.rmtree(fleet.path / folder, ignore_errors=True)
        for file in _FILES:
            (fleet.path / file).unlink(missing_ok=True)
        fleet.head_started_file.unlink(missing_ok=True)
        fleet.state_file.unlink(missing_ok=True)
    return report


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


def state_if_readable(fleet: FleetDir) -> FleetState | None:
    """The fleet's state, or None where there is none or it is damaged."""
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
