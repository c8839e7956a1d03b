"""The horizontal axis of time that the charts of a report share, so that they line up."""

from __future__ import annotations

from rayburst.report import numbers, svg
from rayburst.report.history import Interval

WIDTH = 1080.0
LEFT = 132.0
RIGHT = WIDTH - 74.0


def time_scale(span: Interval) -> svg.Scale:
    """The horizontal axis that all charts of a report share."""
    return svg.Scale(low=span[0], high=span[1], start=LEFT, stop=RIGHT)


def time_axis(span: Interval, top: float, bottom: float) -> list[str]:
    """Grid lines and clock times since the start, labels under `bottom`."""
    x = time_scale(span)
    parts = []
    for tick in svg.clock_ticks((span[1] - span[0]) / 1000, about=10):
        at = x(span[0] + tick * 1000)
        parts.append(svg.line(at, top, at, bottom, "rule"))
        parts.append(svg.text(at, bottom + 17, numbers.clock(tick), "quiet small mid"))
    parts.append(svg.line(LEFT, bottom, RIGHT, bottom, "axis"))
    parts.append(svg.text(LEFT - 24, bottom + 17, "min:s", "quiet small num"))
    return parts
