"""A worker's end of the rendezvous: heartbeats, the controller's calls, and plans."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from rayburst.errors import PeerLostError
from rayburst.train.inplace.messages import QUIET, Arrival, Call, Plan, Pulse

__all__ = ["Board", "Link"]

_logger = logging.getLogger(__name__)


class Board(Protocol):
    """The rendezvous as a worker reaches it; see `rendezvous.Rendezvous` for what the methods do.

    Each waits for its answer. PeerLostError when the rendezvous is gone for good.
    """

    def watch(self, member: str, seen: int, pulse: Pulse) -> Call:
        """The last call, at the latest after a heartbeat's time."""

    def arrive(self, member: str, arrival: Arrival) -> Plan:
        """The plan of `member`."""

    def drop(self, member: str) -> None:
        """Forget `member`. Does not wait."""


class Link:
    """Watches for calls in a daemon thread; `on_broken` runs there when a member is lost.

    `is_cut`: the rendezvous is gone for good, so nobody will say when to leave.
    """

    def __init__(
        self, board: Board, member: str, pulse: Pulse, on_broken: Callable[[Call], None]
    ) -> None:
        self.latest: Call = QUIET
        self.pulse = pulse
        self.is_cut = False
        self._board, self._member = board, member
        self._on_broken = on_broken
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rendezvous", daemon=True)

    def start(self) -> Link:
        """Begin to watch."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """End the thread at its next heartbeat, and be forgotten."""
        self._stopped.set()

    def arrive(self, arrival: Arrival) -> Plan:
        """Wait for the controller's plan."""
        return self._board.arrive(self._member, arrival)

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                call = self._board.watch(self._member, self.latest.number, self.pulse)
            except PeerLostError as error:
                _logger.info("%s", error)
                self.latest = replace(self.latest, reason="the rendezvous is gone")
                self.is_cut = True
                return
            if call.number > self.latest.number:
                self.latest = call
                if call.kind == "broken":
                    self._on_broken(call)
        self._board.drop(self._member)
