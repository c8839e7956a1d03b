"""What an hour of work costs by utilisation, owned beside rented. Pure: data in, HTML out."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from rayburst.cost.tco import BreakEven
from rayburst.report import bars, numbers, svg
from rayburst.report.axis import LEFT, RIGHT, WIDTH
from rayburst.report.parts import header, section
from rayburst.report.style import market_class, page

_TOP, _BOTTOM = 24.0, 320.0
_BREAK_EVEN = (
    "Own when the machine works more than this share of all hours: with the rent as it is, and a "
    "fifth lower or higher. The rent is that of an hour of work: restarts make it dearer."
)
_STEEP = 1.5  # the axis ends at so many times the dearest rent; what is above leaves the picture


def own_or_rent_page(point: BreakEven, sku: str) -> str:
    """A page with the curve, the break-even points and the sensitivity."""
    lead = (
        "An owned machine costs its wear, people and idle power whether it works or not: the less "
        "it works, the dearer an hour of work. Rent is paid for hours of work alone."
    )
    return page(
        f"own or rent {sku}",
        [
            header("own or rent", escape(sku), lead),
            section("An hour of work, by utilisation", "", own_or_rent(point)),
            section("Break-even", _BREAK_EVEN, _table(point)),
        ],
    )


def own_or_rent(point: BreakEven) -> str:
    """The curve of owning, a level for each rent, a mark where they meet."""
    top_usd = _STEEP * max(float(usd) for usd in point.rents.values())
    x = svg.Scale(low=0, high=1, start=LEFT, stop=RIGHT)
    y = svg.Scale(low=0, high=top_usd, start=_BOTTOM, stop=_TOP)
    parts = [*_axes(x, y)]
    owned = [(float(u), float(usd)) for u, usd in point.curve]
    parts.append(svg.path([(x(u), y(usd)) for u, usd in owned if usd <= top_usd], "line"))
    labels = _spread([y(float(usd)) for usd in point.rents.values()])
    for (name, usd), label in zip(point.rents.items(), labels, strict=True):
        parts += _rent(name, float(usd), point.utilisation[name], x, y, label)
    share, hourly = next(((u, c) for u, c in owned if c <= top_usd * 0.92), owned[-1])
    parts.append(svg.text(x(share) + 10, y(hourly), "owned", "strong under"))
    return svg.figure(WIDTH, _BOTTOM + 44, parts, "Dollars an hour of work by utilisation")


def _axes(x: svg.Scale, y: svg.Scale) -> list[str]:
    parts = []
    for tick in svg.ticks(0, y.high, about=6):
        parts.append(svg.line(LEFT, y(tick), RIGHT, y(tick), "rule"))
        parts.append(svg.text(LEFT - 12, y(tick) + 4.5, numbers.usd(tick), "quiet small num"))
    for tenth in range(0, 11, 2):
        at = x(tenth / 10)
        parts.append(svg.text(at, _BOTTOM + 17, f"{tenth * 10}%", "quiet small mid"))
    parts.append(svg.line(LEFT, _BOTTOM, RIGHT, _BOTTOM, "axis"))
    words = "share of all hours in which the machine works"
    parts.append(svg.text((LEFT + RIGHT) / 2, _BOTTOM + 36, words, "quiet small mid"))
    parts.append(svg.text(0, _TOP - 10, "USD an hour of work", "quiet small"))
    return parts


def _rent(
    name: str, usd: float, meets: object, x: svg.Scale, y: svg.Scale, label: float
) -> list[str]:
    colour = market_class(name.rpartition(" ")[2])
    line = svg.el(
        "line",
        x1=LEFT,
        y1=y(usd),
        x2=RIGHT,
        y2=y(usd),
        stroke=f"var(--{colour})",
        stroke_width="2",
        tip=f"{name}: {numbers.usd(usd)} an hour of work",
    )
    words = f"{name} {numbers.usd(usd)}"
    parts = [line, svg.text(RIGHT - 4, label - 6, words, "small num under")]
    if meets is not None:
        share = float(str(meets))
        tip = f"owning is cheaper above {share:.0%}"
        parts.append(svg.el("circle", cls="dots", cx=x(share), cy=y(usd), r=5.0, tip=tip))
        parts.append(svg.text(x(share) + 10, y(usd) - 8, f"{share:.0%}", "strong under"))
    return parts


def _spread(heights: Sequence[float]) -> list[float]:
    """Heights of labels, moved apart so that none covers another; the order stays."""
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    placed: dict[int, float] = {}
    lowest = -1e9
    for i in order:
        placed[i] = max(heights[i], lowest + 17)
        lowest = placed[i]
    return [placed[i] for i in range(len(heights))]


def _table(point: BreakEven) -> str:
    told = point.table()
    return bars.table(told.columns, told.rows)
