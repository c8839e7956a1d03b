"""Where a text ends: stop texts, found while it is written.

    finder = StopFinder((b"\n\n",))
    finder.feed(65)     # b"A": safe to show
    finder.feed(10)     # b"": may be the beginning of a stop
    finder.feed(10)     # finder.is_found; the stop itself is never shown
    finder.rest()       # what was held back, when the text ends otherwise

Pure. What may still become a stop text is held back, so that a stream never shows part of one.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["StopFinder"]


class StopFinder:
    """Watches one text."""

    def __init__(self, stops: Sequence[bytes] = ()) -> None:
        self._stops = tuple(stops)
        self._held = b""
        self.is_found = False

    def feed(self, token: int) -> bytes:
        """The bytes that may be shown now."""
        if not self._stops:
            return bytes((token,))
        self._held += bytes((token,))
        ending = [s for s in self._stops if self._held.endswith(s)]
        if ending:
            self.is_found = True
            shown = self._held[: -max(map(len, ending))]
            self._held = b""
            return shown
        keep = max(self._overlap(stop) for stop in self._stops)
        shown = self._held[: len(self._held) - keep]
        self._held = self._held[len(self._held) - keep :]
        return shown

    def rest(self) -> bytes:
        """What was held back."""
        held, self._held = self._held, b""
        return held

    def _overlap(self, stop: bytes) -> int:
        """How many of the last bytes are the beginning of `stop`."""
        most = min(len(stop) - 1, len(self._held))
        return next((n for n in range(most, 0, -1) if self._held.endswith(stop[:n])), 0)
