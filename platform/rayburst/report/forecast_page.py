"""A forecast as a picture: when each way to run a job ends, what it costs, with intervals.

Pure: a forecast in, HTML out. Thick lines span the stated share of futures, dots are their middle.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from typing import TYPE_CHECKING

from rayburst.cost.forecast import COVERS
from rayburst.report import bars, numbers, svg
from rayburst.report.parts import header, section, tile
from rayburst.report.style import page

if TYPE_CHECKING:
    from rayburst.cost.forecast import Forecast, Option, Span

_WIDTH, _LEFT, _RIGHT = 1080.0, 124.0, 940.0
_ROW, _TOP = 44.0, 28.0
_COLOURS = {"on-prem": "on-prem", "spot": "spot", "mixed": "good", "on-demand": "on-demand"}
_BARS = f"a bar holds {COVERS:.0%} of the futures, its circle is the middle one."


def forecast_page(told: Forecast) -> str:
    """The whole page as HTML."""
    table = told.table()
    return page(
        "forecast",
        [
            header("rayburst plan", escape(_title(told)), _lead(told)),
            _figures(told),
            section("When it ends", f"Hours from now; {_BARS}", ends(told)),
            section("What it costs", f"Dollars of all its nodes; {_BARS}", costs(told)),
            section("In numbers", table.note, bars.table(table.columns, table.rows)),
        ],
    )


def ends(told: Forecast) -> str:
    """The end of each option; a line at the deadline."""
    deadline = told.needs.deadline_s
    mark = None if deadline is None else (deadline / 3600, "deadline")
    return _intervals(told.options, lambda o: o.hours, lambda v: f"{v:.3g} h", mark)


def costs(told: Forecast) -> str:
    """The cost of each option; a line at the budget."""
    budget = told.needs.budget_usd
    mark = None if budget is None else (budget, "budget")
    return _intervals(told.options, lambda o: o.usd, numbers.usd, mark)


def _title(told: Forecast) -> str:
    best = told.best
    return "Nothing keeps both for certain" if best is None else f"Take {best.name}"


def _lead(told: Forecast) -> str:
    needs = told.needs
    words = [f"{numbers.seconds(needs.work_s)} of work on {numbers.count(needs.nodes, 'node')}"]
    words.append(f"{numbers.seconds(needs.changeover_s)} for each changeover")
    if needs.deadline_s is not None:
        words.append(f"a deadline in {numbers.seconds(needs.deadline_s)}")
    if needs.budget_usd is not None:
        words.append(f"a budget of {numbers.usd(needs.budget_usd)}")
    return ", ".join(words) + f". {told.futures} futures of the spot market were played through."


def _figures(told: Forecast) -> str:
    tiles = []
    for option in told.options:
        if option.usd is None:
            tiles.append(tile(option.name, "–", "", [escape(option.why_not)]))
            continue
        notes = []
        if option.on_time is not None:
            notes.append(f"<b>{option.on_time:.0%}</b> on time")
        if told.needs.budget_usd is not None and option.in_budget is not None:
            notes.append(f"<b>{option.in_budget:.0%}</b> in budget")
        tiles.append(tile(option.name, numbers.usd(option.usd.middle), "", notes))
    return svg.el("div", *tiles, cls="figures")


def _intervals(
    options: Sequence[Option],
    value: Callable[[Option], Span | None],
    words: Callable[[float], str],
    mark: tuple[float, str] | None,
) -> str:
    spans = [(option, value(option)) for option in options]
    ends_at = [edge for _, s in spans if s for edge in (s.low, s.middle, s.high)]
    finite = [edge for edge in ends_at if edge < float("inf")] + ([mark[0]] if mark else [])
    x = svg.Scale(low=0, high=max(finite, default=1.0) * 1.04, start=_LEFT, stop=_RIGHT)
    bottom = _TOP + _ROW * len(spans)
    parts = []
    for tick in svg.ticks(0, x.high, about=8):
        parts.append(svg.line(x(tick), _TOP - 6, x(tick), bottom, "rule"))
        parts.append(svg.text(x(tick), bottom + 18, words(tick), "quiet small mid"))
    for place, (option, span) in enumerate(spans):
        parts += _row(option, span, _TOP + _ROW * (place + 0.5), x, words)
    if mark is not None:
        parts.append(svg.line(x(mark[0]), _TOP - 6, x(mark[0]), bottom, "event"))
        label = f"{mark[1]} {words(mark[0])}"
        parts.append(svg.text(x(mark[0]), _TOP - 12, label, "small strong mid"))
    return svg.figure(_WIDTH, bottom + 26, parts, "Intervals by option")


def _row(
    option: Option, span: Span | None, middle: float, x: svg.Scale, words: Callable[[float], str]
) -> list[str]:
    parts = [svg.text(0, middle + 5, option.name, "strong")]
    if span is None:
        return [*parts, svg.text(_LEFT + 8, middle + 5, option.why_not, "quiet small")]
    colour = _COLOURS.get(option.name, "other")
    never = span.high == float("inf")
    high = _RIGHT if never else x(span.high)
    tip = f"{option.name}: {words(span.low)} to {'never' if never else words(span.high)}"
    parts.append(svg.rect(x(span.low), middle - 6, high - x(span.low), 12, colour, tip=tip))
    at = _RIGHT if span.middle == float("inf") else x(span.middle)
    parts.append(svg.el("circle", cls="dots", cx=at, cy=middle, r=6.0, tip=words(span.middle)))
    last = "may never end" if never else words(span.middle)
    parts.append(svg.text(max(high, at) + 12, middle + 5, last, "small strong"))
    return parts
