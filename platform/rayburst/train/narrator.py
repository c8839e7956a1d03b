"""Turns the progress that rank 0 publishes into plain lines, few and never none for long.

The clock is the caller's. A line of progress at most every `every_s`; a change of the group (start,
leaving, growth) at once; a word when nothing has moved for `quiet_s`.
"""

from __future__ import annotations

from collections.abc import Callable

from rayburst.train.progress import Progress, duration, line

__all__ = ["Narrator"]


class Narrator:
    """Call `hear` about once a second with what was last published, or None."""

    def __init__(
        self, say: Callable[[str], None], *, every_s: float = 2.0, quiet_s: float = 8.0
    ) -> None:
        self._say = say
        self._every_s = every_s
        self._quiet_s = quiet_s
        self._last: Progress | None = None
        self._told_s = float("-inf")
        self._heard_s: float | None = None
        self._began_s: float | None = None

    def hear(self, body: bytes | None, now_s: float, *, is_last: bool = False) -> None:
        """Say what is new at unix time `now_s`; with `is_last` also what was held back."""
        self._began_s = now_s if self._began_s is None else self._began_s
        progress = Progress.from_json(body) if body else None
        if progress is None or progress == self._last:
            self._while_quiet(now_s)
            return
        before, self._last, self._heard_s = self._last, progress, now_s
        if before is None or progress.since != before.since:
            self._tell(_group(progress, before), now_s)
        if progress.state != "running":
            self._tell(f"step {progress.step}: {progress.state}", now_s)
        elif is_last or now_s - self._told_s >= self._every_s:
            self._tell(line(progress), now_s)

    def _while_quiet(self, now_s: float) -> None:
        since_s = self._heard_s if self._heard_s is not None else self._began_s
        if since_s is None:
            return
        if now_s - max(since_s, self._told_s) < self._quiet_s:
            return
        if self._last is None:
            self._tell(f"waiting for workers ({duration(now_s - since_s)})", now_s)
        else:
            self._tell(f"no step for {duration(now_s - since_s)}: the group restarts", now_s)

    def _tell(self, text: str, now_s: float) -> None:
        self._told_s = now_s
        self._say(text)


def _group(progress: Progress, before: Progress | None) -> str:
    place = f"{progress.world} workers" if progress.world > 1 else "1 worker"
    start = f"from step {progress.resumed_from}" if progress.resumed_from else "from the start"
    if before is None:
        return f"training with {place} {start}"
    if progress.stopped_s is not None:  # in place: shorter than progress is seldom
        return f"training with {place} {start} after {progress.stopped_s:.1f} s without a step"
    gap = duration(max(0.0, progress.since - before.t))
    again = before.step - progress.resumed_from
    redone = f", {again} steps again" if again > 0 else ""
    return f"training with {place} {start} after {gap} without a step{redone}"
