"""Keeps an embedded fleet's own servers alive: the object store, and once Ray's head is up the
agent and the bookkeeper.

Run by `rayburst up` as `python -m rayburst.dev.supervisor FLEET_FOLDER`. On a real head node the
service manager does this for the agent, and the object store is somebody else's. Ray's head is not
restarted: its control store lives in memory, so a head that died is reported, not hidden.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from rayburst.dev.embedded import HEAD_STARTED, store_server
from rayburst.fleet import processes
from rayburst.fleet.layout import FleetDir, ray_environment

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


def main(folder: Path) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    fleet = FleetDir(folder)
    state = fleet.read_state()
    env = {**os.environ, **ray_environment(fleet, state)}
    services = [
        Service(
            name,
            [sys.executable, "-m", module, str(folder)],
            wanted=(folder / HEAD_STARTED).exists,
        )
        for name, module in (
            ("agent", "rayburst.fleet.agent"),
            ("bookkeeper", "rayburst.cost.bookkeeper"),
        )
    ]
    if state.store_is_embedded:
        server = store_server(fleet, state)
        services.insert(0, Service("object-store", server.command(), wanted=lambda: True))
    while True:
        for service in services:
            service.keep(fleet, env, time.monotonic())
        time.sleep(_POLL_S)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
