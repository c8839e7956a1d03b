"""Small pure functions that write SVG: elements, a linear scale, round ticks.

All text and attribute values are escaped here, in `el` and `text`. It deliberately knows no
colours (style.py) and no data.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

Attribute = str | float | int | None

# Steps that read well on a clock, in seconds.
_CLOCK_STEPS = (
    *(1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400),
    *(86400 * days for days in (2, 7, 14, 28, 91)),
)


def number(value: float) -> str:
    """A coordinate with at most two decimals."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def el(tag: str, *children: str, cls: str = "", tip: str = "", **attributes: Attribute) -> str:
    """One element. `children` are markup; attribute `a_b` becomes `a-b`; None drops it.

    `tip` becomes a native tool tip, which needs no script and is read aloud.
    """
    if cls:
        attributes = {"class": cls, **attributes}
    written = "".join(
        f' {name.replace("_", "-")}="{escape(_value(value))}"'
        for name, value in attributes.items()
        if value is not None
    )
    inside = (f"<title>{escape(tip)}</title>" if tip else "") + "".join(children)
    return f"<{tag}{written}>{inside}</{tag}>" if inside else f"<{tag}{written}/>"


def _value(value: Attribute) -> str:
    return number(value) if isinstance(value, float) else str(value)


def text(x: float, y: float, words: str, cls: str = "") -> str:
    """Text with its baseline at (x, y)."""
    return el("text", escape(words), cls=cls, x=x, y=y)


def line(x1: float, y1: float, x2: float, y2: float, cls: str) -> str:
    """A straight line."""
    return el("line", cls=cls, x1=x1, y1=y1, x2=x2, y2=y2)


def rect(
    x: float, y: float, width: float, height: float, cls: str = "", *, tip: str = "", **rest: str
) -> str:
    """A rectangle; widths below half a pixel are drawn half a pixel wide, never lost."""
    width = max(float(width), 0.5)
    return el("rect", cls=cls, tip=tip, x=x, y=y, width=width, height=float(height), **rest)


def path(points: Sequence[tuple[float, float]], cls: str) -> str:
    """A line through at least one point."""
    return el("path", cls=cls, d="M" + "L".join(_pair(x, y, " ") for x, y in points))


def polygon(points: Sequence[tuple[float, float]], cls: str, tip: str = "") -> str:
    """A closed shape."""
    return el("polygon", cls=cls, tip=tip, points=" ".join(_pair(x, y, ",") for x, y in points))


def _pair(x: float, y: float, between: str) -> str:
    return f"{number(x)}{between}{number(y)}"


def figure(width: float, height: float, parts: Iterable[str], label: str) -> str:
    """A drawing that scales with the page; `label` says in words what it shows."""
    return el(
        "div",
        el(
            "svg",
            *parts,
            viewBox=f"0 0 {number(width)} {number(height)}",
            role="img",
            aria_label=label,
        ),
        cls="chart",
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    """Maps [low, high] linearly onto [start, stop] and keeps the result within it."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.0
        return self.start + min(max(share, 0.0), 1.0) * (self.stop - self.start)


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round values (1, 2 or 5 times a power of ten) within [low, high], about that many."""
    if not high > low:
        return [low]
    raw = (high - low) / max(about, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(n * step, 12) for n in range(first, last + 1)]


def clock_ticks(length_s: float, about: int) -> list[float]:
    """Round times from 0 to `length_s`, in seconds."""
    step = next((s for s in _CLOCK_STEPS if length_s / s <= about), _CLOCK_STEPS[-1])
    return [float(n * step) for n in range(int(length_s // step) + 1)]
