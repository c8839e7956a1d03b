"""The top of a run's page, its dollars and its interruptions. Pure: a story in, HTML out."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from html import escape
from typing import TYPE_CHECKING

from rayburst.report import bars, numbers, parts, svg
from rayburst.report.history import Event, NodeLife
from rayburst.report.parts import (
    bold,
    section,
    tile,
)
from rayburst.report.style import market_class

if TYPE_CHECKING:
    from rayburst.report.run_page import RunStory


def header(story: RunStory) -> str:
    """Name, when, how long, on how many nodes."""
    length = numbers.seconds((story.span[1] - story.span[0]) / 1000)
    began = datetime.fromtimestamp(story.span[0] / 1000, tz=UTC).strftime("%Y-%m-%d %H:%M UTC")
    spent = story.summary.goodput
    nodes = numbers.count(len({life.node for life in story.lives}), "node")
    apart_s = sum(end - start for start, end in story.run.between) / 1000
    apart = f", {numbers.seconds(apart_s)} of them between submissions" if apart_s else ""
    words = f"{numbers.count(spent.steps, 'step')} in {length} since {began}{apart}, on {nodes}."
    return parts.header("rayburst training run", escape(story.name), words)


def figures(story: RunStory) -> str:
    """Goodput, dollars, interruptions, checkpoints."""
    spent, summary = story.summary.goodput, story.summary
    sizes = summary.world_sizes
    goodput = numbers.UNKNOWN if spent.share is None else numbers.percent(spent.share, 1.0)
    worlds = [f"{bold(str(spent.workers))} workers at the most"]
    if len(sizes) > 1:
        worlds.append(f"sizes {bold(' → '.join(map(str, sizes[:8])))}")
    other = story.alternatives.get("on-demand")
    saved = [f"all on-demand {bold(numbers.usd(other))}"]
    if story.usd is not None and other:
        side = "less" if story.usd <= other else "more"
        saved.append(f"{bold(numbers.percent(abs(other - story.usd), other))} {side}")
    kinds = [one.kind for one in story.interruptions]
    taken = [
        f"{bold(str(kinds.count('notice')))} with notice, {bold(str(kinds.count('cut')))} without",
        f"{bold(numbers.count(spent.steps_redone, 'step'))} done again",
    ]
    pace = summary.pace
    kept = ["what one costs is not in its log"]
    if pace is not None:
        kept = [f"one every {bold(numbers.seconds(pace['interval_s']))} pays"]
        kept.append(f"each stands still for {bold(numbers.seconds(pace['blocked_s']))}")
    tiles = (
        tile("Goodput", goodput, "of worker time", worlds),
        tile("Cost", numbers.usd(story.usd), "", saved),
        tile("Interruptions", str(len(kinds)), "", taken),
        tile("Checkpoints", str(summary.checkpoints), "", kept),
    )
    return svg.el("div", *tiles, cls="figures")


def dollars(story: RunStory) -> str:
    """One bar for what it cost, one for each market where all of it might have run."""
    values: dict[str, tuple[float | None, str]] = {"this run": (story.usd, "ink")}
    for market, usd in story.alternatives.items():
        values[f"all {market}"] = (usd, market_class(market))
    spot = "An all-spot run would have waited out every gap of the market; the others would not."
    words = "The same node time at the fleet's cheapest price of each market. " + spot
    rows = [
        (name, numbers.usd(usd))
        for name, usd in sorted(story.usd_by_purpose.items(), key=lambda one: -one[1])
    ]
    body = _value_bars(values) + bars.table(("of it", "USD"), rows)
    return section("Cost against alternatives", words, body)


def _value_bars(values: Mapping[str, tuple[float | None, str]]) -> str:
    known = [usd for usd, _ in values.values() if usd is not None]
    x = svg.Scale(low=0, high=max([*known, 0.0]) or 1.0, start=124.0, stop=940.0)
    parts = []
    for place, (name, (usd, colour)) in enumerate(values.items()):
        top = 4.0 + 34 * place
        parts.append(svg.text(0, top + 17, name, "strong" if place == 0 else ""))
        end = x.start if usd is None else x(usd)
        if usd is not None:
            parts.append(svg.rect(x.start, top, end - x.start, 24, colour, tip=numbers.usd(usd)))
        parts.append(svg.text(end + 10, top + 17, numbers.usd(usd), "strong"))
    return svg.figure(1080, 8 + 34 * len(values), parts, "Dollars beside alternatives")


def interruptions(story: RunStory) -> str:
    """What each one cost in time and steps."""
    title = "What each interruption cost"
    if not story.interruptions:
        return section(title, "No node that it ran on was taken away.", "")
    rows = [
        (i.words, i.node, numbers.seconds(i.gap_s), numbers.grouped(i.steps_lost))
        for i in story.interruptions
    ]
    words = "Gap: from the last step before the change to the first one after it."
    return section(title, words, bars.table(("what", "node", "gap", "steps lost"), rows))


def as_event(life: NodeLife) -> list[Event]:
    """A stay as the node events that tell it."""
    common = {
        "node": life.node,
        "pool": life.pool,
        "market": life.market,
        "price_usd_per_hour": life.price_usd_per_hour,
    }
    times = (
        ("requested", life.requested_ms),
        ("up", life.up_ms),
        ("draining", life.draining_ms),
        ("gone", life.gone_ms),
    )
    return [{"kind": kind, "t": at / 1000, **common} for kind, at in times if at is not None]
