"""The picture of a replay: one self-contained HTML page, mean cost by fraction and policy."""

from __future__ import annotations

from html import escape

from rayburst.fleet.replay.results import Report
from rayburst.report import svg
from rayburst.report.bars import table
from rayburst.report.style import page

_COLOURS = {
    "rayburst": "good",
    "deadline-policy": "on-prem",
    "uniform-progress": "spot",
    "uniform-progress-idle": "grey",
    "greedy": "other",
    "on-demand": "on-demand",
    "omniscient": "ink",
}
_LEAD = (
    "What a job cost, over the cost of running all of it on-demand: shorter is cheaper. "
    "Omniscient knows the future: nothing that needs all its nodes can cost less in time."
)
_BAR, _LEFT, _RIGHT, _WIDTH = 18.0, 170.0, 560.0, 640.0


def render(report: Report, title: str) -> str:
    """The page as text. Bars are means of zones; the table has every zone."""
    body = [svg.el("h1", escape(title)), svg.el("p", _LEAD), _bars(report)]
    whole = report.table()
    body += [table(whole.columns, whole.rows), svg.el("p", escape(whole.note))]
    return page(title, body)


def _bars(report: Report) -> str:
    """Groups of bars, one group a fraction, on one scale from 0 to all-on-demand."""
    mean = report.mean()
    top_cost = max([1.0, *(c for by in mean.values() for c in by.values())])
    x = svg.Scale(low=0.0, high=top_cost, start=_LEFT, stop=_RIGHT)
    parts, y = [], 20.0
    for fraction, by in mean.items():
        parts.append(svg.text(0, y, f"work / time allowed {float(fraction):g}", "strong"))
        y += 8.0
        for policy, cost in by.items():
            parts.append(svg.text(0, y + 13, policy))
            tip = f"{policy} at {fraction}: {cost:.4f} of all-on-demand"
            parts.append(svg.rect(_LEFT, y, x(cost) - _LEFT, _BAR - 4, _COLOURS[policy], tip=tip))
            parts.append(svg.text(x(cost) + 6, y + 12, f"{cost:.3f}"))
            y += _BAR
        y += 24.0
    return svg.figure(_WIDTH, y, parts, "Mean cost over all-on-demand, by fraction and policy")
