"""The parts that all report pages are put together from: sections, legends, figures, table rows.

Pure: text and markup in, markup out. Words are escaped here; markup is taken as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from rayburst.report import svg
from rayburst.report.marks import cross, triangle_down
from rayburst.report.style import MARKETS, market_class


def header(eyebrow: str, title: str, lead: str) -> str:
    """The top of a page: what made it, its title as markup, one line that sums it up."""
    return svg.el(
        "header",
        svg.el("p", escape(eyebrow), cls="eyebrow"),
        svg.el("h1", title),
        svg.el("p", escape(lead), cls="lead"),
    )


def section(title: str, words: str, body: str) -> str:
    """A heading, a line under it, and markup."""
    under = f'<p class="quiet">{escape(words)}</p>' if words else ""
    return svg.el("section", f"<h2>{escape(title)}</h2>", under, body)


def tile(name: str, value: str, unit: str, notes: Sequence[str]) -> str:
    """A headline figure; `notes` are markup."""
    shown = escape(value) + (svg.el("span", escape(unit), cls="unit") if unit else "")
    return svg.el(
        "div",
        f"<h3>{escape(name)}</h3>",
        svg.el("div", shown, cls="value"),
        *(svg.el("div", note, cls="note") for note in notes),
        cls="figure",
    )


def bold(words: str) -> str:
    """Words as markup that stands out."""
    return f"<b>{escape(words)}</b>"


def row(cell: str, cells: Sequence[str], cls: str = "") -> str:
    """A row of a table; `cell` is "td" or "th", `cells` are markup."""
    return svg.el("tr", *(svg.el(cell, c) if c else f"<{cell}></{cell}>" for c in cells), cls=cls)


def legend(items: Iterable[tuple[str, str]]) -> str:
    """(sample as markup, words) side by side."""
    lines = [svg.el("li", mark + escape(words)) for mark, words in items]
    return svg.el("ul", *lines, cls="legend")


def swatch(**look: str) -> str:
    """A small sample of a colour class or hatch."""
    return sample(svg.rect(1, 1, 18, 12, **look))


def sample(mark: str) -> str:
    """A small drawing for a legend."""
    return svg.el("svg", mark, viewBox="0 0 20 14", aria_hidden="true")


def market_items(markets: Iterable[str]) -> list[tuple[str, str]]:
    """Legend of markets: known ones in their order, then others."""
    held = set(markets)
    known = [m for m in MARKETS if m in held] + sorted(held - set(MARKETS))
    return [(swatch(cls=market_class(m)), m or "market unknown") for m in known]


def state_items(interruptions: Iterable[str]) -> list[tuple[str, str]]:
    """Legend of a node's states, and of the kinds of interruption ("notice", "cut") there were."""
    outline = svg.rect(2, 2, 16, 10, "paper", stroke="var(--quiet)", stroke_width="1.5")
    items = [
        (sample(outline), "requested, starting"),
        (swatch(fill="url(#hatch-other)"), "draining"),
    ]
    kinds = set(interruptions)
    if "notice" in kinds:
        items.append((sample(triangle_down(10, 8)), "notice"))
    if "cut" in kinds:
        items.append((sample(cross(10, 7)), "power cut"))
    return items
