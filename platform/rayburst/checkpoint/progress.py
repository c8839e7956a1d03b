"""What a save has sent and has yet to send, and how fast the store takes it.

Thread-safe. The bandwidth is that of the last transfers: bytes over the seconds in which at least
one request was under way. Deliberately does not know what is sent.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["Bandwidth", "Progress"]

Monotonic = Callable[[], float]
_REMEMBERED = 64


class Bandwidth:
    """Bytes per second to the store, over the last transfers of this process."""

    def __init__(self, monotonic: Monotonic) -> None:
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._busy = 0
        self._since = 0.0
        self._bytes = 0
        self._samples: deque[tuple[int, float]] = deque(maxlen=_REMEMBERED)

    @contextmanager
    def transfer(self, size_bytes: int) -> Iterator[None]:
        """Count one request; a failed one counts its time and no bytes."""
        with self._lock:
            self._settle()
            self._busy += 1
        sent = 0
        try:
            yield
            sent = size_bytes
        finally:
            with self._lock:
                self._bytes += sent
                self._settle()
                self._busy -= 1

    def _settle(self) -> None:
        now = self._monotonic()
        if self._busy:
            self._samples.append((self._bytes, now - self._since))
            self._bytes = 0
        self._since = now

    def bytes_per_s(self) -> float | None:
        """None before the first transfer has ended."""
        with self._lock:
            sent = sum(size for size, _ in self._samples)
            seconds = sum(s for _, s in self._samples)
        return sent / seconds if sent and seconds > 0 else None


class Progress:
    """Bytes of one save on one rank."""

    def __init__(self, bandwidth: Bandwidth) -> None:
        self._lock = threading.Lock()
        self._bandwidth = bandwidth
        self.total_bytes = 0
        self.planned_bytes = 0
        self.sent_bytes = 0
        self.reused_bytes = 0

    def expect(self, size_bytes: int) -> None:
        """The rank's whole part of the state, known before hashing."""
        with self._lock:
            self.total_bytes = size_bytes

    def planned(self, size_bytes: int) -> None:
        """These bytes are new and will be sent."""
        with self._lock:
            self.planned_bytes += size_bytes

    def reused(self, size_bytes: int) -> None:
        """These bytes are on the store already."""
        with self._lock:
            self.reused_bytes += size_bytes

    @contextmanager
    def sending(self, size_bytes: int) -> Iterator[None]:
        """One request."""
        with self._bandwidth.transfer(size_bytes):
            yield
        with self._lock:
            self.sent_bytes += size_bytes

    def left_bytes(self) -> int:
        """At most so many bytes are still to be sent."""
        with self._lock:
            return max(self.total_bytes - self.reused_bytes, self.planned_bytes) - self.sent_bytes
