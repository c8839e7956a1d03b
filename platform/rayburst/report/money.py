"""Dollars by purpose: one bar a job (tenant, model, ...) on one scale, and the same as numbers.

Pure: a statement in, HTML out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from html import escape

from rayburst.cost.entries import PURPOSES
from rayburst.cost.statement import CostRow, Statement
from rayburst.report import numbers, svg
from rayburst.report.axis import LEFT, RIGHT, WIDTH
from rayburst.report.parts import header, row, swatch
from rayburst.report.style import page

LOOKS: Mapping[str, dict[str, str]] = {
    "useful": {"cls": "good"},
    "checkpoint": {"cls": "soft"},
    "lost": {"fill": "url(#hatch-lost)"},
    "restarting": {"cls": "stall"},
    "waiting": {"cls": "grey"},
    "idle": {"fill": "var(--quiet)"},
    "storage": {"fill": "url(#hatch-other)"},
    "transfer": {"cls": "pale"},
}
"""How each purpose is drawn; the same as in the demo's report, whose words are its own."""

_MOST_ROWS = 14


def statement_page(statement: Statement) -> str:
    """A statement alone as a page."""
    title = f"{numbers.usd(float(statement.usd))} by {escape(statement.by)}"
    head = header("rayburst cost", title, in_words(statement))
    body = money_bars(statement) + money_table(statement)
    return page("cost", [head, svg.el("section", body)])


def money_bars(statement: Statement) -> str:
    """The dearest rows as bars; the rest is one bar, so that nothing is left out."""
    rows = _shown(statement.rows)
    dearest = max((sum(by.values(), Decimal(0)) for _, by in rows), default=Decimal(0))
    x = svg.Scale(low=0, high=float(dearest) or 1.0, start=LEFT, stop=RIGHT)
    drawn: list[str] = []
    for place, (name, by) in enumerate(rows):
        drawn += _bar(name, by, 4.0 + 32 * place, x)
    label = f"Dollars by {statement.by} and purpose"
    return svg.figure(WIDTH, 8 + 32 * len(rows), drawn, label)


def money_table(statement: Statement) -> str:
    """Every row's dollars in all and by purpose; the head is the legend of the bars."""
    shown = [purpose for purpose in LOOKS if statement.usd_by_purpose.get(purpose)]
    head = ["", "USD", "node-hours", *(swatch(**LOOKS[p]) + escape(p) for p in shown)]
    lines = [svg.el("thead", row("th", head))]
    for one in statement.rows:
        parts = [_cell(one.usd_by_purpose.get(p)) for p in shown]
        lines.append(
            row("td", [escape(one.key), f"${one.usd:,}", f"{one.node_hours:,.2f}", *parts])
        )
    hours = sum(one.node_hours for one in statement.rows)
    sums = [_cell(statement.usd_by_purpose.get(p)) for p in shown]
    lines.append(row("td", ["total", f"${statement.usd:,}", f"{hours:,.2f}", *sums], cls="total"))
    return svg.el("table", *lines)


def in_words(statement: Statement) -> str:
    """One sentence: the share that was useful, what was not, and what is not known."""
    useful = statement.usd_by_purpose.get("useful", Decimal(0))
    words = (
        f"{numbers.percent(float(useful), float(statement.usd))} of the dollars were useful work."
    )
    vain = {p: v for p, v in statement.usd_by_purpose.items() if p != "useful"}
    if vain:
        most = max(vain, key=lambda purpose: vain[purpose])
        words += f" Most of the rest: {PURPOSES[most]}, {numbers.usd(float(vain[most]))}."
    if statement.unpriced_hours:
        words += f" {statement.unpriced_hours:.2f} node-hours have no known price and no bar."
    return words


def _shown(rows: Sequence[CostRow]) -> list[tuple[str, Mapping[str, Decimal]]]:
    kept = [(one.key, one.usd_by_purpose) for one in rows[:_MOST_ROWS]]
    rest = rows[_MOST_ROWS:]
    if not rest:
        return kept
    sums = {p: sum((one.usd_by_purpose.get(p, Decimal(0)) for one in rest), Decimal(0))
            for p in PURPOSES}  # fmt: skip
    return [*kept, (f"{len(rest)} others", sums)]


def _bar(name: str, by: Mapping[str, Decimal], top: float, x: svg.Scale) -> list[str]:
    short = name if len(name) <= 14 else name[:6] + "…" + name[-7:]  # ids differ at their ends
    parts = [svg.text(0, top + 16, short, "strong")]
    start = 0.0
    for purpose, look in LOOKS.items():
        usd = float(by.get(purpose, 0))
        if usd > 0:
            tip = f"{name}, {PURPOSES[purpose]}: {numbers.usd(usd)}"
            width = x(start + usd) - x(start)
            parts.append(svg.rect(x(start), top, width, 22, tip=tip, **look))
        start += usd
    parts.append(svg.text(x(start) + 8, top + 16, numbers.usd(start), "quiet small"))
    return parts


def _cell(usd: Decimal | None) -> str:
    return numbers.usd(float(usd)) if usd else "–"
