"""Ray's autoscaler process of a fleet: found, and started again when it is dead (Ray does not)."""

from __future__ import annotations

import logging

import psutil

from rayburst.fleet import processes
from rayburst.fleet.layout import FleetDir

_LOG = logging.getLogger("rayburst.agent")


def monitor_process(fleet: FleetDir) -> psutil.Process | None:
    """Ray's autoscaler process of this fleet."""
    for process in processes.owned(fleet.path):
        if any(part.endswith("autoscaler/v2/monitor.py") for part in process.cmdline()):
            return process
    return None


class MonitorKeeper:
    """Starts Ray's autoscaler again after it died, with the command and environment it had."""

    def __init__(self, fleet: FleetDir) -> None:
        self._fleet = fleet
        self._process: psutil.Process | None = None
        self._command: list[str] = []
        self._environment: dict[str, str] = {}

    def keep(self) -> None:
        if self._process is not None and processes.alive(self._process):
            return
        if found := monitor_process(self._fleet):
            self._process, self._command = found, found.cmdline()
            self._environment = found.environ()
        elif self._command:
            _LOG.warning("the autoscaler is dead; starting it again")
            started = processes.spawn(
                self._command, env=self._environment, log=self._fleet.logs / "monitor-restarted.log"
            )
            self._process = psutil.Process(started.pid)
