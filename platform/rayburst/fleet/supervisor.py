"""Keeps a fleet's own processes alive once Ray's head is up: the agent and the bookkeeper.

    start_supervisor(fleet, "rayburst.fleet.supervisor"); wait_for_agent(fleet, timeout_s=90)

Run on the head of `ray up` as `python -m rayburst.fleet.supervisor FLEET_FOLDER`; `rayburst up`
runs `dev.supervisor`, which keeps the embedded object store too. Ray's head is not restarted: its
control store lives in memory, so a head that died is reported, not hidden.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from rayburst.errors import StartError
from rayburst.fleet import processes
from rayburst.fleet.files import read_json, tail
from rayburst.fleet.layout import FleetDir, FleetState, ray_environment

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
_POLL_S = 0.25
_BACKOFF_MOST_S = 10.0
_LOG = logging.getLogger("rayburst.supervisor")


@dataclass
class Service:
    """One kept process: started when `wanted` says so, and again, slower, when it ends."""

    name: str
    command: list[str]
    wanted: Callable[[], bool]
    process: psutil.Process | None = None
    next_start: float = 0.0
    backoff_s: float = 0.25

    def keep(self, fleet: FleetDir, env: dict[str, str], now: float) -> None:
        if self.process is not None and processes.alive(self.process):
            return
        if self.process is not None and self.next_start <= now - self.backoff_s:
            _LOG.warning("%s ended; starting it again in %.2f s", self.name, self.backoff_s)
            self.next_start = now + self.backoff_s
            self.backoff_s = min(2 * self.backoff_s, _BACKOFF_MOST_S)
            self.process = None
        if self.process is None and self.wanted() and now >= self.next_start:
            log = fleet.logs / f"{self.name}.log"
            self.process = psutil.Process(processes.spawn(self.command, env=env, log=log).pid)
            self.next_start = now
            _LOG.info("%s runs as process %d", self.name, self.process.pid)


def start_supervisor(fleet: FleetDir, module: str, **marks: str) -> None:
    """Start the supervisor that is `module`, with the fleet's mark and these in its environment."""
    processes.spawn(
        [sys.executable, "-m", module, str(fleet.path)],
        env={**os.environ, processes.OWNER_VARIABLE: str(fleet.path), **marks},
        log=fleet.logs / "supervisor.log",
    )


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
        f"{tail(fleet.logs / 'agent.log')}"
    )


def supervise(fleet: FleetDir, state: FleetState, first: Sequence[Service] = ()) -> None:
    """Keep these and, once the head has started, agent and bookkeeper; never returns."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    env = {**os.environ, **ray_environment(fleet, state)}
    services = [*first, _module(fleet, "agent", "rayburst.fleet.agent")]
    services.append(_module(fleet, "bookkeeper", "rayburst.cost.bookkeeper"))
    while True:
        for service in services:
            service.keep(fleet, env, time.monotonic())
        time.sleep(_POLL_S)


def _module(fleet: FleetDir, name: str, module: str) -> Service:
    command = [sys.executable, "-m", module, str(fleet.path)]
    return Service(name, command, wanted=fleet.head_started_file.exists)


def main(folder: Path) -> None:
    fleet = FleetDir(folder)
    supervise(fleet, fleet.read_state())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
