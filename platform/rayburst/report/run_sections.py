"""What the demo's page and a run's page both show of a training run. Pure: records in, HTML out."""

from __future__ import annotations

from collections.abc import Sequence

from rayburst.report import bars, loss, marks, numbers
from rayburst.report.history import Event, Interval, NodeLife, Run, ms
from rayburst.report.interruption import Interruption
from rayburst.report.parts import legend, market_items, sample, section, state_items, swatch
from rayburst.report.spend import spend, summed
from rayburst.train.goodput import PURPOSES
from rayburst.train.run_report import RunReport


def committed_at(log: Sequence[Event]) -> list[int]:
    """When checkpoints were safe, in ms: rank 0 tells of each that was committed."""
    return sorted(ms(r["t"]) for r in log if r["kind"] == "committed")


def nodes_legend(run: Run, lives: Sequence[NodeLife], told: Sequence[Interruption]) -> str:
    """What the timeline's colours and signs mean."""
    items = market_items(life.market for life in lives)
    items += state_items(one.kind for one in told)
    if run.window:
        items += [
            (swatch(cls="stall"), "training stands still"),
            (sample(marks.diamond(10, 7)), "checkpoint"),
        ]
    begun = {start for start, _ in run.windows}
    if any(start not in begun for start, _ in run.changeovers):
        items.append((sample(marks.triangle_right(6, 7)), "training goes on"))
    if any(step.redone for step in run.steps):
        items.append((swatch(fill="url(#hatch-lost)"), "steps lost, computed again"))
    return legend(items)


def loss_over_time(
    run: Run,
    log: Sequence[Event],
    *,
    span: Interval,
    told: Sequence[Interruption],
    order0: float | None,
    words: str,
) -> str:
    """The section with the loss; `words` say what the line and the circles are."""
    drawn = loss.draw(
        run,
        span=span,
        validation=[
            (ms(r["t"]), float(r["bits_per_byte"]))
            for r in log
            if r["kind"] == "validation" and r.get("bits_per_byte") is not None
        ],
        order0=order0,
        marks=[one.at_ms for one in told if one.at_ms is not None],
    )
    return section("Loss", f"{words} Dashed: an interruption. Same clock as above.", drawn)


def node_seconds(title: str, events: Sequence[Event], log: Sequence[Event], *, end: float) -> str:
    """The section with what node time went to; empty where no node is known. `end` in unix s."""
    parts = spend(events, log, end=end)
    if not parts:
        return ""
    total = summed(parts)
    share = numbers.percent(total["training"], sum(total.values()))
    words = f"Each node-second counts once. {share} of them were training that lasted."
    return section(title, words, bars.spend_bars(parts) + bars.spend_table(parts))


def worker_seconds(report: RunReport) -> str:
    """The run as its workers saw it, and the pace that followed; empty for one without a start."""
    spent = report.goodput
    if not spent.total_s:
        return ""
    rows = [
        (
            words,
            numbers.seconds(spent.seconds[purpose]),
            numbers.percent(spent.seconds[purpose], spent.total_s),
        )
        for purpose, words in PURPOSES.items()
    ]
    rows.append(("worker-seconds", numbers.seconds(spent.total_s), "100%"))
    told = ["Each worker-second counts once."]
    if report.data_wait_share is not None:
        told.append(f"Steps waited for data for {report.data_wait_share:.2%} of their time.")
    pace = report.pace
    if pace is not None:
        told.append(
            f"A checkpoint blocked for {pace['blocked_s']:.2f} s, was durable "
            f"{pace['durable_s']:.1f} s later; with an interruption every "
            f"{numbers.seconds(pace['between_s'])} one each {numbers.seconds(pace['interval_s'])} "
            "loses least."
        )
    told += [f"{str(found).capitalize()}." for found in report.growths]
    body = bars.table(("what", "time", "share"), rows)
    return section("What the worker-seconds were spent on", " ".join(told), body)
