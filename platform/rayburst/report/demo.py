"""The report of `rayburst demo`: one self-contained HTML file.

    html = render(report, node_events=events, run_log=log)

`report` is the content of report.json, the other two are read from the fleet's object store.
What they do not say is shown as unknown. The page loads nothing and runs no script.

Drawn with own inline SVG. plotly was weighed: it brings zooming, but 4.5 MB of script a file,
and its figures carry fixed colours, so light, dark and print each need another copy.
matplotlib's SVG has the same fixed colours and turns text into outlines. Five small charts
that share one time axis cost less than either, and native tool tips need no script.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape

from rayburst.report import bars, headline, numbers, run_sections, svg, timeline
from rayburst.report.headline import Report, get
from rayburst.report.history import Event, Interval, NodeLife, Run, ms, node_lives, read_run
from rayburst.report.interruption import Interruption, read_interruption
from rayburst.report.parts import section
from rayburst.report.style import MARKETS, page
from rayburst.train.run_report import run_report


@dataclass(frozen=True, kw_only=True, slots=True)
class _Story:
    """Everything the sections draw from, read once."""

    report: Report
    node_events: Sequence[Event]
    run_log: Sequence[Event]
    lives: Sequence[NodeLife]
    run: Run
    span: Interval
    interruptions: Sequence[Interruption]


def render(report: Report, *, node_events: Sequence[Event], run_log: Sequence[Event]) -> str:
    """The whole page as HTML. Never fails for parts that are missing from `report`."""
    told = [read_interruption(raw) for raw in report.get("interruptions") or ()]
    story = _Story(
        report=report,
        node_events=node_events,
        run_log=run_log,
        lives=node_lives(node_events),
        run=read_run(run_log),
        span=_span(report, node_events, run_log),
        interruptions=told,
    )
    sections = [
        headline.header(report, nodes=len({life.node for life in story.lives}), interruptions=told),
        headline.figures(report, told),
        _timeline(story),
        _loss(story),
        _spend(story),
        run_sections.worker_seconds(run_report(story.run_log)),
        svg.el("div", _cost(story), _interruptions(story), cls="two"),
        _footer(story),
    ]
    return page("rayburst demo", sections)


def _span(report: Report, events: Sequence[Event], log: Sequence[Event]) -> Interval:
    """From the first thing known to the last, in ms."""
    times = [record["t"] for record in (*events, *log)]
    for phase in report.get("phases") or ():
        times += [phase["start"], phase["end"]]
    started, wall = report.get("started"), report.get("wall_s")
    if started is not None:
        times += [started, started + (wall or 0.0)]
    return (ms(min(times)), max(ms(max(times)), ms(min(times)) + 1000)) if times else (0, 1000)


def _timeline(story: _Story) -> str:
    report = story.report
    if not story.lives:
        return section("Nodes", "", '<p class="quiet">No node events were recorded.</p>')
    drawn = timeline.draw(
        story.lives,
        story.run,
        span=story.span,
        phases=[(str(p["name"]), ms(p["start"]), ms(p["end"])) for p in report.get("phases") or ()],
        checkpoints=run_sections.committed_at(story.run_log),
        interruptions=story.interruptions,
    )
    words = "Every node from request to end; its seconds at the right. Training above them."
    legend = run_sections.nodes_legend(story.run, story.lives, story.interruptions)
    return section("Nodes", words, legend + drawn)


def _loss(story: _Story) -> str:
    return run_sections.loss_over_time(
        story.run,
        story.run_log,
        span=story.span,
        told=story.interruptions,
        order0=get(story.report, "training", "order0_bits_per_byte"),
        words="Line: training loss, mean over workers. Circles: validation on held-out text.",
    )


def _spend(story: _Story) -> str:
    title = "What the node-seconds were spent on"
    end = story.span[1] / 1000
    return run_sections.node_seconds(title, story.node_events, story.run_log, end=end)


def _cost(story: _Story) -> str:
    usd = get(story.report, "cost", "usd")
    other = get(story.report, "cost", "usd_if_on_demand")
    held = get(story.report, "fleet", "node_seconds") or {}
    rows = []
    for market in MARKETS:
        spent = held.get(market.replace("-", "_"))
        rows.append((market, numbers.seconds(spent), _prices(story.lives, market)))
    body = bars.cost_bars(usd, other) + bars.table(("market", "paid node time", "per hour"), rows)
    return section("Cost against all on-demand", "The same node-seconds, priced twice.", body)


def _prices(lives: Sequence[NodeLife], market: str) -> str:
    held = [life.price_usd_per_hour for life in lives if life.market == market]
    if not held:
        return "–"
    known = sorted({price for price in held if price is not None})
    if len(known) < len(set(held)):
        return numbers.UNKNOWN
    low, high = numbers.usd(known[0]), numbers.usd(known[-1])
    return low if low == high else f"{low} to {high}"


def _interruptions(story: _Story) -> str:
    title = "What each interruption cost"
    if not story.interruptions:
        told = story.report.get("interruptions") is not None
        return section(title, "No node was taken away." if told else "Unknown.", "")
    rows = [
        (i.words, i.node, numbers.seconds(i.gap_s), numbers.grouped(i.steps_lost))
        for i in story.interruptions
    ]
    words = "Gap: the longest time in which no worker finished a step."
    return section(title, words, bars.table(("what", "node", "gap", "steps lost"), rows))


def _footer(story: _Story) -> str:
    report = story.report
    started = report.get("started")
    when = (
        numbers.UNKNOWN
        if started is None
        else datetime.fromtimestamp(started, tz=UTC).strftime("%Y-%m-%d %H:%M UTC")
    )
    versions = [f"{name} {v}" for name, v in (report.get("versions") or {}).items()]
    run = str(get(report, "job", "run") or numbers.UNKNOWN)
    job = str(get(report, "job", "id") or numbers.UNKNOWN)
    words = [f"Started {when}", f"run {run}", f"job {job}", *versions]
    return svg.el("footer", escape(" · ".join(words)))
