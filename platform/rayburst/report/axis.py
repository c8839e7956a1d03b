"""The horizontal axis of time that the charts of a report share, so that they line up."""

from __future__ import annotations

from rayburst.report import numbers, svg
from rayburst.report.history import Interval

WIDTH = 1080.0
LEFT = 132.0
RIGHT = WIDTH - 74.0
_LONG_MS = 4 * 3_600_000


def time_scale(span: Interval) -> svg.Scale:
    """The horizontal axis that all charts of a report share."""
    return svg.Scale(low=span[0], high=span[1], start=LEFT, stop=RIGHT)


def time_axis(span: Interval, top: float, bottom: float) -> list[str]:
    """Grid lines and times since the start, labels under `bottom`: a clock, or hours of a day."""
    x = time_scale(span)
    is_long = span[1] - span[0] > _LONG_MS
    parts = []
    for tick in svg.clock_ticks((span[1] - span[0]) / 1000, about=10):
        at = x(span[0] + tick * 1000)
        parts.append(svg.line(at, top, at, bottom, "rule"))
        words = f"{tick / 3600:g}" if is_long else numbers.clock(tick)
        parts.append(svg.text(at, bottom + 17, words, "quiet small mid"))
    parts.append(svg.line(LEFT, bottom, RIGHT, bottom, "axis"))
    unit = "hours" if is_long else "min:s"
    parts.append(svg.text(LEFT - 24, bottom + 17, unit, "quiet small num"))
    return parts
