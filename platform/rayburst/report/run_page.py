"""A training run as one HTML file: nodes by market, goodput, loss, dollars beside alternatives.

    story = tell_run("first", events, log, entries=ledger, spec=spec, now=now)
    story.html(); story.frame(); story.to_dict(); story.save("run.html")

One self-contained file that loads nothing: light, dark and print, as all reports (`style.py`).
Pure but for `save`: data in, HTML out. What is not known says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayburst.cost.bill import on_demand_price
from rayburst.cost.entries import NANO, Entry
from rayburst.fleet.events import NodeEvent
from rayburst.fleet.spec import FleetSpec
from rayburst.fleet.taken import taken_away
from rayburst.report import run_parts, run_sections, timeline, usage
from rayburst.report.gaps import gap_after
from rayburst.report.history import Event, Interval, NodeLife, Run, ms, node_lives, read_run
from rayburst.report.interruption import Interruption
from rayburst.report.parts import section
from rayburst.report.style import page
from rayburst.train.run_report import RunReport, run_report

if TYPE_CHECKING:
    import pandas

_MS_PER_HOUR = 3_600_000


@dataclass(frozen=True, kw_only=True, slots=True)
class RunStory:
    """What a run's page is made from.

    Attributes:
        lives: stays of the nodes that its workers sat on.
        usd: its lines of the ledger; None where a price is not known.
        usd_by_purpose: the same by what it was for.
        alternatives: USD of the same node time by market, at the fleet's cheapest price there.
    """

    name: str
    span: Interval
    lives: Sequence[NodeLife]
    log: Sequence[Event]
    run: Run
    summary: RunReport
    interruptions: Sequence[Interruption]
    usd: float | None
    usd_by_purpose: Mapping[str, float]
    alternatives: Mapping[str, float | None]

    def html(self) -> str:
        """The page."""
        return run_page(self)

    def save(self, path: str | Path) -> Path:
        """Write the page; returns where."""
        file = Path(path)
        file.write_text(self.html())
        return file

    def frame(self) -> pandas.DataFrame:
        """One row a step and rank: `t` in unix seconds, `loss` in nats per token."""
        import pandas

        columns = ("t", "rank", "host", "world", "step", "loss", "duration_s", "redone")
        rows = [
            (s.end_ms / 1000, s.rank, s.host, s.world, s.step, s.loss,
             (s.end_ms - s.start_ms) / 1000, s.redone)
            for s in self.run.steps
        ]  # fmt: skip
        return pandas.DataFrame(rows, columns=list(columns))

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it: nodes, interruptions, the run's report and dollars."""
        return {
            "run": self.name,
            "lives": [asdict(life) for life in self.lives],
            "interruptions": [asdict(one) for one in self.interruptions],
            **self.summary.to_json(),
            "usd": self.usd,
            "usd_by_purpose": dict(self.usd_by_purpose),
            "alternatives": dict(self.alternatives),
        }

    def _repr_html_(self) -> str:
        """In a notebook: the page in a frame of its own, so that no style leaks."""
        return f'<iframe srcdoc="{escape(self.html())}" width="100%" height="900"></iframe>'


def tell_run(
    name: str,
    events: Sequence[NodeEvent],
    log: Sequence[Event],
    *,
    entries: Sequence[Entry],
    spec: FleetSpec,
    now: float,
) -> RunStory:
    """Put a run's story together from node events, its run log and the ledger, as of `now`."""
    run = read_run(log)
    hosts = {tenure.host for tenure in run.tenures}
    lives = [life for life in node_lives([asdict(e) for e in events]) if life.node in hosts]
    span = _span(lives, run, ms(now))
    mine = of_run(entries, name, run)
    by_purpose: dict[str, float] = {}
    for entry in mine:
        usd = (entry.nano_usd or 0) / NANO
        by_purpose[entry.line.purpose] = by_purpose.get(entry.line.purpose, 0.0) + usd
    known = all(entry.nano_usd is not None for entry in mine if entry.line.unit == "ms")
    hours = sum(e.quantity for e in mine if e.line.unit == "ms") / _MS_PER_HOUR
    return RunStory(
        name=name,
        span=span,
        lives=lives,
        log=log,
        run=run,
        summary=run_report(log),
        interruptions=_interruptions(events, log, hosts),
        usd=sum(by_purpose.values()) if known and mine else None,
        usd_by_purpose=by_purpose,
        alternatives=_alternatives(spec, hours if mine else None),
    )


def _span(lives: Sequence[NodeLife], run: Run, now_ms: int) -> Interval:
    """From the first of its nodes, or of its workers, to its last record."""
    if run.window is None:
        return (now_ms - 1000, now_ms)
    first = min((life.requested_ms for life in lives if life.up_ms), default=run.window[0])
    last = max(run.window[1], run.window[0] + 1000)
    return (min(first, run.window[0]), last)


def of_run(entries: Sequence[Entry], name: str, run: Run) -> list[Entry]:
    """The ledger's lines of whoever trained this run: by its model, and who held most of its nodes.

    Each of its submissions is looked for in its own time.

    What a run keeps on the store is in its own name, what its nodes cost in that of its submission.
    """
    named = {e.line.owner.job for e in entries if name in (e.line.owner.model, e.line.owner.job)}
    if not any(e.line.node for e in entries if e.line.owner.job in named):
        for window in run.windows:
            held = _held(entries, run, window)
            named |= {max(held, key=lambda job: held[job])} if held else set()
    return [e for e in entries if e.line.owner.job in named]


def _held(entries: Sequence[Entry], run: Run, window: Interval) -> dict[str, int]:
    """Node time by job on the nodes that the run was on in this window, in the periods about it."""
    hosts = {t.host for t in run.tenures if t.start_ms <= window[1] and window[0] <= t.end_ms}
    held: dict[str, int] = {}
    for e in entries:
        at_once = e.line.start_ms <= window[1] and window[0] <= e.line.end_ms
        if at_once and e.line.node in hosts and e.line.owner.job:
            held[e.line.owner.job] = held.get(e.line.owner.job, 0) + e.quantity
    return held


def _alternatives(spec: FleetSpec, hours: float | None) -> dict[str, float | None]:
    """The same node time on the cheapest pool of each market."""
    found: dict[str, float | None] = {}
    for market in dict.fromkeys(str(pool.market) for pool in spec.pools):
        prices = [p.price_usd_per_hour for p in spec.pools if str(p.market) == market]
        known = [price for price in prices if price is not None]
        found[market] = min(known) * hours if known and hours is not None else None
    if "on-demand" not in found:
        usd = on_demand_price(spec)
        found["on-demand"] = None if usd is None or hours is None else usd * hours
    return found


def _interruptions(
    events: Sequence[NodeEvent], log: Sequence[Event], hosts: set[str]
) -> list[Interruption]:
    found = []
    for one in taken_away(events):
        gap = gap_after(log, node=one.node, t=one.t) if one.node in hosts else None
        if gap is not None:
            found.append(
                Interruption(
                    kind="cut" if one.notice_s is None else "notice",
                    node=one.node,
                    at_ms=ms(one.t),
                    notice_s=one.notice_s,
                    gap_s=gap.gap_s,
                    steps_lost=gap.steps_lost,
                )
            )
    return found


def run_page(story: RunStory) -> str:
    """The whole page as HTML."""
    return page(
        f"run {story.name}",
        [
            run_parts.header(story),
            run_parts.figures(story),
            _nodes(story),
            _loss(story),
            section(
                "Utilisation",
                "What its paid nodes did over time, as shares of all of them.",
                usage.legend_of(story) + usage.over_time(story),
            ),
            _spent(story),
            run_sections.worker_seconds(story.summary),
            run_parts.dollars(story),
            run_parts.interruptions(story),
        ],
    )


def _nodes(story: RunStory) -> str:
    drawn = timeline.draw(
        story.lives,
        story.run,
        span=story.span,
        phases=(),
        checkpoints=run_sections.committed_at(story.log),
        interruptions=story.interruptions,
    )
    words = "Every node it ran on, from request to end; its seconds at the right."
    legend = run_sections.nodes_legend(story.run, story.lives, story.interruptions)
    return section("Nodes", words, legend + drawn)


def _loss(story: RunStory) -> str:
    words = "Loss over ln 2, which is bits per byte where the model reads bytes; mean over workers."
    return run_sections.loss_over_time(
        story.run,
        story.log,
        span=story.span,
        told=story.interruptions,
        order0=None,
        words=words,
    )


def _spent(story: RunStory) -> str:
    events = [event for life in story.lives for event in run_parts.as_event(life)]
    title = "What its node-seconds were spent on"
    return run_sections.node_seconds(title, events, story.log, end=story.span[1] / 1000)
