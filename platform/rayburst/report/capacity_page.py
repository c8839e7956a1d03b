"""A month of jobs as a picture: what it costs by how many machines are owned. Pure.

A bar is the month with so many own nodes: what they cost, and beside it what had to burst.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rayburst.report import bars, numbers, svg
from rayburst.report.parts import header, legend, section, swatch
from rayburst.report.style import page

if TYPE_CHECKING:
    from rayburst.cost.capacity import Capacity, CapacityPlan

_WIDTH, _LEFT, _RIGHT = 1080.0, 124.0, 860.0
_ROW, _TOP = 32.0, 12.0


def capacity_page(plan: CapacityPlan) -> str:
    """The whole page as HTML."""
    best, table = plan.best, plan.table()
    lead = (
        f"{numbers.usd(best.usd)} in {plan.hours:,.0f} hours, the least with so few late jobs. Own "
        "nodes cost every hour, worked or not; burst nodes the hours they work."
    )
    looks = [(swatch(cls="on-prem"), "own nodes"), (swatch(cls="on-demand"), "burst")]
    return page(
        "capacity",
        [
            header("rayburst plan", f"Own {numbers.count(best.own_nodes, 'node')}", lead),
            section(
                "What the month costs",
                "By own nodes; longest wait in their queue at the right.",
                legend(looks) + _bars(plan),
            ),
            section("In numbers", table.note, bars.table(table.columns, table.rows)),
        ],
    )


def _bars(plan: CapacityPlan) -> str:
    high = max(one.usd for one in plan.tried)
    x = svg.Scale(low=0, high=high or 1.0, start=_LEFT, stop=_RIGHT)
    bottom = _TOP + _ROW * len(plan.tried)
    parts = []
    for tick in svg.ticks(0, high, about=6):
        parts.append(svg.line(x(tick), _TOP, x(tick), bottom, "rule"))
        parts.append(svg.text(x(tick), bottom + 17, numbers.usd(tick), "quiet small mid"))
    for place, one in enumerate(plan.tried):
        parts += _row(one, _TOP + _ROW * place, x, is_best=one is plan.best)
    return svg.figure(_WIDTH, bottom + 26, parts, "Dollars of the month by own nodes")


def _row(one: Capacity, top: float, x: svg.Scale, *, is_best: bool) -> list[str]:
    middle = top + _ROW / 2 + 4.5
    weight = "strong" if is_best else ""
    own, end = x(one.own_usd), x(one.usd)
    words = numbers.usd(one.usd) + (" (best)" if is_best else "")
    parts = [
        svg.text(0, middle, numbers.count(one.own_nodes, "own node"), weight),
        svg.text(end + 10, middle, words, f"small {weight}".strip()),
    ]
    if one.own_usd:
        tip = f"own nodes {numbers.usd(one.own_usd)}"
        parts.append(svg.rect(_LEFT, top + 6, own - _LEFT, _ROW - 12, "on-prem", tip=tip))
    if one.burst_usd:
        tip = f"burst {numbers.usd(one.burst_usd)} for {one.burst_node_hours:,.0f} node-hours"
        parts.append(svg.rect(own, top + 6, end - own, _ROW - 12, "on-demand", tip=tip))
    if one.waits_h:
        wait = "no wait" if not max(one.waits_h) else numbers.seconds(3600 * max(one.waits_h))
        parts.append(svg.text(_WIDTH, middle, wait, "quiet small num"))
    return parts
