"""The acts of a run as a strip over the timeline, their names stacked so that none overlap.

Pure: (name, from, to) in, SVG out.
"""

from __future__ import annotations

from collections.abc import Sequence

from rayburst.report import svg
from rayburst.report.axis import WIDTH

Phase = tuple[str, int, int]
_ROW = 17.0
_STRIP = 12.0
_GLYPH = 6.0  # mean width of a letter at the size of small text


def draw(phases: Sequence[Phase], x: svg.Scale) -> tuple[list[str], float]:
    """Markup from y = 0 down, and the height it takes; nothing for no phases."""
    if not phases:
        return [], 6.0
    places = _placed(phases, x)
    strip = _ROW * (1 + max(row for _, row in places))
    parts = []
    for (name, start, end), (left, row) in zip(phases, places, strict=True):
        baseline = strip - _ROW * row - 5
        at = x(start) + 0.5
        parts.append(svg.rect(at, strip, x(end) - at - 1.5, 4, "grey", tip=f"phase: {name}"))
        if row:
            parts.append(svg.line(at, baseline + 3, at, strip, "rule"))
        parts.append(svg.text(left, baseline, name, "quiet small under"))
    return parts, strip + _STRIP


def _placed(phases: Sequence[Phase], x: svg.Scale) -> list[tuple[float, int]]:
    """Left edge and row of each name: above all later names that it would reach over."""
    places: list[tuple[float, float, int]] = []
    for name, start, _ in reversed(phases):
        width = _GLYPH * len(name) + 8
        left = min(x(start), WIDTH - width)
        under = [row for begin, later, row in places if left + width > min(begin, later)]
        places.append((x(start), left, max(under, default=-1) + 1))
    return [(left, row) for _, left, row in reversed(places)]
