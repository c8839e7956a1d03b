"""The signs on a time axis: checkpoint, restart, notice, power cut.

Each takes the centre of the sign and returns markup; style.py gives the colours.
"""

from __future__ import annotations

from rayburst.report import svg


def diamond(x: float, y: float, tip: str = "") -> str:
    """A checkpoint."""
    return svg.polygon([(x, y - 5), (x + 4.2, y), (x, y + 5), (x - 4.2, y)], "ink", tip)


def triangle_right(x: float, y: float, tip: str = "") -> str:
    """Training goes on."""
    return svg.polygon([(x, y - 6), (x + 9, y), (x, y + 6)], "good", tip)


def triangle_down(x: float, y: float, tip: str = "") -> str:
    """Notice of an interruption."""
    return svg.polygon([(x - 7, y - 7), (x + 7, y - 7), (x, y + 6)], "mark", tip)


def cross(x: float, y: float) -> str:
    """A node cut off without notice."""
    strokes = [[(x - 5, y - 5), (x + 5, y + 5)], [(x - 5, y + 5), (x + 5, y - 5)]]
    return "".join(svg.path(s, cls) for cls in ("halo", "cross") for s in strokes)
