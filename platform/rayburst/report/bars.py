"""Horizontal bars: seconds by purpose and market, and cost against all on-demand.

Pure: sums in, HTML and SVG out. It computes no sums of its own beyond those for a total row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from rayburst.report import numbers, svg
from rayburst.report.axis import LEFT, RIGHT, WIDTH
from rayburst.report.parts import row, swatch
from rayburst.report.spend import PURPOSES, NodeSpend, summed
from rayburst.report.style import MARKETS

# How each purpose is drawn: a colour class, or a hatch where the time was spent in vain.
LOOKS: Mapping[str, dict[str, str]] = {
    "training": {"cls": "good"},
    "checkpoint": {"cls": "soft"},
    "redone": {"fill": "url(#hatch-lost)"},
    "restarting": {"cls": "stall"},
    "waiting": {"cls": "grey"},
    "draining": {"fill": "url(#hatch-other)"},
    "idle": {"cls": "ink"},  # not to be taken for "starting" beside it
    "starting": {"cls": "other"},
    "outside": {"cls": "pale"},
}


def spend_bars(parts: Sequence[NodeSpend]) -> str:
    """One bar a market, cut by purpose, all on one scale of node-seconds."""
    rows = _by_market(parts)
    longest = max((sum(by.values()) for _, by in rows), default=0)
    x = svg.Scale(low=0, high=max(longest, 1), start=LEFT, stop=RIGHT)
    drawn = []
    for place, (market, by) in enumerate(rows):
        top = 6.0 + 38 * place
        drawn.append(svg.text(0, top + 18, market, "strong"))
        start = 0
        for purpose, look in LOOKS.items():
            spent = by[purpose]
            if spent:
                tip = f"{market}, {PURPOSES[purpose]}: {numbers.seconds(spent / 1000)}"
                width = x(start + spent) - x(start)
                drawn.append(svg.rect(x(start), top, width, 26, tip=tip, **look))
            start += spent
        drawn.append(svg.text(x(start) + 8, top + 18, numbers.seconds(start / 1000), "quiet small"))
    return svg.figure(WIDTH, 6 + 38 * len(rows), drawn, "Node-seconds by market and purpose")


def spend_table(parts: Sequence[NodeSpend]) -> str:
    """The same sums as numbers; its first column is the legend of the bars."""
    rows = _by_market(parts)
    total = summed(parts)
    whole = sum(total.values())
    head = ["", *(market for market, _ in rows), "all nodes", "share"]
    lines = [svg.el("thead", row("th", [escape(h) for h in head]))]
    for purpose, look in LOOKS.items():
        if total[purpose]:
            cells = [swatch(**look) + escape(PURPOSES[purpose])]
            cells += [_exact(by[purpose]) for _, by in rows]
            cells += [_exact(total[purpose]), numbers.percent(total[purpose], whole)]
            lines.append(row("td", cells))
    sums = [_exact(sum(by.values())) for _, by in rows]
    lines.append(row("td", ["node-seconds", *sums, _exact(whole), "100%"], cls="total"))
    return svg.el("table", *lines)


def cost_bars(usd: float | None, usd_if_on_demand: float | None) -> str:
    """Two bars on one scale; what is unknown gets the word and no bar."""
    width, left, right = 516.0, 104.0, 436.0
    known = [v for v in (usd, usd_if_on_demand) if v is not None]
    x = svg.Scale(low=0, high=max([*known, 0.0]) or 1.0, start=left, stop=right)
    parts = []
    rows = (("this run", usd, "ink"), ("all on-demand", usd_if_on_demand, "on-demand"))
    for place, (name, value, cls) in enumerate(rows):
        top = 4.0 + 40 * place
        parts.append(svg.text(0, top + 18, name))
        at = left if value is None else x(value)
        if value is not None:
            parts.append(svg.rect(left, top, at - left, 26, cls, tip=numbers.usd(value)))
        parts.append(svg.text(at + 10, top + 18, numbers.usd(value), "strong"))
    label = f"Cost {numbers.usd(usd)}, all on-demand {numbers.usd(usd_if_on_demand)}"
    return svg.figure(width, 78, parts, label)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A plain table of text, escaped here."""
    lines = [svg.el("thead", row("th", [escape(h) for h in head]))]
    lines += [row("td", [escape(cell) for cell in cells]) for cells in rows]
    return svg.el("table", *lines)


def _by_market(parts: Sequence[NodeSpend]) -> list[tuple[str, dict[str, int]]]:
    """Sums by market, known markets first; a missing name reads "unknown"."""
    names = [*MARKETS, *sorted({p.market for p in parts} - set(MARKETS))]
    rows = [(name, [p for p in parts if p.market == name]) for name in names]
    return [(name or numbers.UNKNOWN, summed(held)) for name, held in rows if held]


def _exact(milliseconds: int) -> str:
    return f"{milliseconds / 1000:,.1f} s" if milliseconds else "–"
