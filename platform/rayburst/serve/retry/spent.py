"""How long a request was under way before this replica got it, by another machine's clock. Pure.

    spent = Spent()
    spent.seconds(b"3f2c91ab/1764320000123", now_s=time.time())

A request that is asked again has used some of its deadline elsewhere. HAProxy stamps each one with
its clock; the smallest difference to the own clock in the last minutes is how far the clocks are
apart, and what a request shows beyond it was spent on the way. A first request shows nothing.
"""

from __future__ import annotations

__all__ = ["Spent"]

_WINDOW_S = 60.0  # clocks that drift by 100 ppm part by 6 ms in it
_MOST_SOURCES = 1024  # a cluster has fewer HAProxies; who asks directly may write what he likes


class Spent:
    """The offsets of the clocks seen, by source."""

    def __init__(self) -> None:
        self._offsets: dict[bytes, _Offset] = {}

    def seconds(self, stamp: bytes, now_s: float) -> float:
        """Seconds since `stamp`, SOURCE/UNIX-MILLISECONDS; 0 where it cannot be read."""
        source, _, stamped_ms = stamp.partition(b"/")
        if not stamped_ms.isdigit() or len(stamped_ms) > 15:
            return 0.0
        difference_s = now_s - int(stamped_ms) / 1000
        offset = self._offsets.get(source)
        if offset is None:
            if len(self._offsets) >= _MOST_SOURCES:
                return 0.0
            offset = self._offsets[source] = _Offset(now_s)
        return difference_s - offset.least(difference_s, now_s)


class _Offset:
    """The least difference within the last one to two windows."""

    __slots__ = ("_before_s", "_began_s", "_least_s")

    def __init__(self, now_s: float) -> None:
        self._began_s = now_s
        self._least_s = self._before_s = float("inf")

    def least(self, difference_s: float, now_s: float) -> float:
        """Takes in a difference and gives the least."""
        if now_s - self._began_s > _WINDOW_S:
            is_recent = now_s - self._began_s < 2 * _WINDOW_S
            self._before_s = self._least_s if is_recent else float("inf")
            self._began_s, self._least_s = now_s, float("inf")
        self._least_s = min(self._least_s, difference_s)
        return min(self._least_s, self._before_s)
