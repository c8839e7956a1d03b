"""The horizontal axis of time that the charts of a report share, so that they line up."""

from __future__ import annotations

from rayburst.report import numbers, svg
from rayburst.report.history import Interval

WIDTH = 1080.0
LEFT = 132.0
RIGHT = WIDTH - 74.0
_HOURS_MS = 4 * 3_600_000
_DAYS_MS = 96 * 3_600_000


def time_scale(span: Interval) -> svg.Scale:
    """The horizontal axis that all charts of a report share."""
    return svg.Scale(low=span[0], high=span[1], start=LEFT, stop=RIGHT)


def time_axis(span: Interval, top: float, bottom: float) -> list[str]:
    """Grid lines and times since the start, labels under `bottom`: a clock, hours or days."""
    x = time_scale(span)
    unit, one_s = _unit(span)
    parts = []
    for tick in svg.clock_ticks((span[1] - span[0]) / 1000, about=10):
        at = x(span[0] + tick * 1000)
        parts.append(svg.line(at, top, at, bottom, "rule"))
        words = f"{tick / one_s:g}" if one_s else numbers.clock(tick)
        parts.append(svg.text(at, bottom + 17, words, "quiet small mid"))
    parts.append(svg.line(LEFT, bottom, RIGHT, bottom, "axis"))
    parts.append(svg.text(LEFT - 24, bottom + 17, unit, "quiet small num"))
    return parts


def _unit(span: Interval) -> tuple[str, float]:
    """What a label counts and its seconds; 0 is a clock."""
    length = span[1] - span[0]
    if length > _DAYS_MS:
        return "days", 86_400.0
    return ("hours", 3600.0) if length > _HOURS_MS else ("min:s", 0.0)
