"""How many bytes this process moved to and from object stores, until somebody writes it down.

    sent, received = TRAFFIC.take()      # since the last take

Bodies of objects in calls that succeeded: what a retry sent in vain, headers and listings are not
counted, and nothing is of a local folder. Thread-safe.
"""

from __future__ import annotations

import threading


class Traffic:
    """Two counters that are read and reset together."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sent = 0
        self._received = 0

    def add(self, *, sent_bytes: int = 0, received_bytes: int = 0) -> None:
        """Count a body that arrived."""
        with self._lock:
            self._sent += sent_bytes
            self._received += received_bytes

    def take(self, *, at_least: int = 1) -> tuple[int, int]:
        """(bytes sent, bytes received) since the last take; (0, 0) while under `at_least`."""
        with self._lock:
            taken = (self._sent, self._received)
            if sum(taken) < at_least:
                return (0, 0)
            self._sent = self._received = 0
            return taken


TRAFFIC = Traffic()
"""Of this process."""
