"""A worker's end of the rendezvous: heartbeats, the controller's calls, and plans.

The controller introduces each worker (`introduce` runs in the worker's process) before the training
function starts; a worker without an introduction is not rebuilt in place.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError

from rayburst.train.inplace.messages import QUIET, Arrival, Call, Plan, Pulse

__all__ = ["Introduction", "Link", "introduce", "introduction"]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Introduction:
    """What a worker needs to take part. `rendezvous`: the actor's handle."""

    rendezvous: Any
    member: str
    timeout_s: float


_given: list[Introduction] = []


def introduce(introduction: Introduction) -> None:
    """Called by the controller in the worker's process."""
    _given[:] = [introduction]


def introduction() -> Introduction | None:
    """What the controller gave this process; None where nothing is rebuilt in place."""
    return _given[0] if _given else None


class Link:
    """Watches for calls in a daemon thread; `on_broken` runs there when a member is lost."""

    def __init__(
        self, given: Introduction, pulse: Pulse, on_broken: Callable[[Call], None]
    ) -> None:
        self.latest: Call = QUIET
        self.pulse = pulse
        self._given = given
        self._on_broken = on_broken
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rendezvous", daemon=True)

    def start(self) -> Link:
        """Begin to watch."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """End the thread at its next heartbeat."""
        self._stopped.set()

    def arrive(self, arrival: Arrival) -> Plan:
        """Wait for the controller's plan. RayError when the rendezvous is gone for good."""
        plan: Plan = ray.get(self._given.rendezvous.arrive.remote(self._given.member, arrival))
        return plan

    def _run(self) -> None:
        while not self._stopped.is_set():
            watch = self._given.rendezvous.watch
            try:
                call = ray.get(watch.remote(self._given.member, self.latest.number, self.pulse))
            except RayError as error:
                # the controller is gone, and with it this worker: Ray ends it
                _logger.info("the rendezvous is gone: %s", error)
                return
            if call.number > self.latest.number:
                self.latest = call
                if call.kind == "broken":
                    self._on_broken(call)
