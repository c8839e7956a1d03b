"""A fleet over time as one HTML file: nodes, hosts by market, dollars, who paid and for what.

    story = tell_fleet("lab", events, statement=statement, now=now, on_demand_usd_per_hour=3.06)
    story.html(); story.frame(); story.to_dict()

One self-contained file that loads nothing: light, dark and print, as all reports (`style.py`).
Pure: data in, HTML out. What is not known says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from html import escape
from typing import TYPE_CHECKING, Any

from rayburst.cost.bill import make_bill
from rayburst.cost.statement import Statement
from rayburst.fleet.events import NodeEvent
from rayburst.fleet.taken import taken_away
from rayburst.report import money, numbers, over_time, svg, timeline
from rayburst.report.history import Interval, NodeLife, Run, ms, node_lives
from rayburst.report.interruption import Interruption
from rayburst.report.parts import bold, header, legend, market_items, section, state_items, tile
from rayburst.report.style import page

if TYPE_CHECKING:
    import pandas

_NO_RUN = Run(windows=(), tenures=(), steps=(), changeovers=())
_MOST_LIVES = 80  # more rows than a page reads; the newest are drawn


@dataclass(frozen=True, kw_only=True, slots=True)
class FleetStory:
    """What a page is made from.

    Attributes:
        span: from the first thing known to now, in ms.
        usd_of_nodes: without storage and traffic; None when a price is not known.
        on_demand_usd_per_hour: the price that the same node time is compared at; None is unknown.
    """

    name: str
    span: Interval
    lives: Sequence[NodeLife]
    interruptions: Sequence[Interruption]
    statement: Statement
    usd_of_nodes: float | None
    usd_if_on_demand: float | None
    on_demand_usd_per_hour: float | None

    def html(self) -> str:
        """The page."""
        return fleet_page(self)

    def frame(self) -> pandas.DataFrame:
        """One row a stay of a node: times in unix seconds, what is not known None."""
        import pandas

        return pandas.DataFrame(self.to_dict()["lives"])

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it: stays of nodes, interruptions, and the statement."""
        return {
            "fleet": self.name,
            "lives": [asdict(life) for life in self.lives],
            "interruptions": [asdict(one) for one in self.interruptions],
            "cost": self.statement.to_dict(),
        }

    def _repr_html_(self) -> str:
        """In a notebook: the page in a frame of its own, so that no style leaks."""
        return f'<iframe srcdoc="{escape(self.html())}" width="100%" height="900"></iframe>'


def tell_fleet(
    name: str,
    events: Sequence[NodeEvent],
    *,
    statement: Statement,
    now: float,
    on_demand_usd_per_hour: float | None,
) -> FleetStory:
    """Put a story together from the event log and a statement of the ledger, as of `now`."""
    bill = make_bill(events, now=now, on_demand_usd_per_hour=on_demand_usd_per_hour)
    lives = node_lives([asdict(event) for event in events])
    first = min((life.requested_ms for life in lives), default=ms(now) - 1000)
    return FleetStory(
        name=name,
        span=(first, max(ms(now), first + 1000)),
        lives=lives,
        interruptions=[
            Interruption(
                kind="cut" if one.notice_s is None else "notice",
                node=one.node,
                at_ms=ms(one.t),
                notice_s=one.notice_s,
                gap_s=None,
                steps_lost=None,
            )
            for one in taken_away(events)
        ],
        statement=statement,
        usd_of_nodes=bill.usd if bill.usd_is_complete else None,
        usd_if_on_demand=bill.usd_if_on_demand,
        on_demand_usd_per_hour=on_demand_usd_per_hour,
    )


def fleet_page(story: FleetStory) -> str:
    """The whole page as HTML."""
    return page(
        f"fleet {story.name}",
        [
            _header(story),
            _figures(story),
            section(
                "Hosts",
                "Paid hosts by market, from request to end.",
                legend(market_items(life.market for life in story.lives))
                + over_time.hosts_over_time(story.lives, story.span),
            ),
            section(
                "Dollars",
                "What nodes cost so far, without storage and traffic, and the same all on-demand.",
                over_time.spent_over_time(story.lives, story.span, story.on_demand_usd_per_hour),
            ),
            section(
                f"By {story.statement.by}",
                money.in_words(story.statement),
                money.money_bars(story.statement) + money.money_table(story.statement),
            ),
            _nodes(story),
        ],
    )


def _header(story: FleetStory) -> str:
    length = numbers.seconds((story.span[1] - story.span[0]) / 1000)
    began = datetime.fromtimestamp(story.span[0] / 1000, tz=UTC).strftime("%Y-%m-%d %H:%M UTC")
    nodes = numbers.count(len({life.node for life in story.lives}), "node")
    lead = f"{length} since {began}, {nodes} in all."
    return header("rayburst fleet", escape(story.name), lead)


def _figures(story: FleetStory) -> str:
    hours = sum(row.node_hours for row in story.statement.rows)
    useful = float(story.statement.usd_by_purpose.get("useful", 0))
    saved = ["all on-demand " + bold(numbers.usd(story.usd_if_on_demand))]
    if story.usd_of_nodes is not None and story.usd_if_on_demand:
        less = story.usd_if_on_demand - story.usd_of_nodes
        saved.append(bold(numbers.percent(less, story.usd_if_on_demand)) + " saved")
    share = numbers.percent(useful, float(story.statement.usd))
    kinds = [one.kind for one in story.interruptions]
    taken = [
        f"{bold(str(kinds.count('notice')))} with notice",
        f"{bold(str(kinds.count('cut')))} without",
    ]
    least = "" if story.statement.is_complete else "at least"
    priced = "every price is known"
    if not story.statement.is_complete:
        priced = f"{story.statement.unpriced_hours:.2f} of unknown price"
    tiles = (
        tile("Paid", numbers.usd(float(story.statement.usd)), least, saved),
        tile("Useful", share, "of the dollars", ["the rest is below, by purpose"]),
        tile("Node-hours", f"{hours:,.2f}", "", [priced]),
        tile("Taken away", str(len(kinds)), "", taken),
    )
    return svg.el("div", *tiles, cls="figures")


def _nodes(story: FleetStory) -> str:
    lives = sorted(story.lives, key=lambda life: life.requested_ms)[-_MOST_LIVES:]
    if not lives:
        return section("Nodes", "No node events were recorded.", "")
    drawn = timeline.draw(
        lives,
        _NO_RUN,
        span=story.span,
        phases=(),
        checkpoints=(),
        interruptions=story.interruptions,
    )
    named = timeline.names_fit(len({life.node for life in lives}))
    words = "Every node from request to end" + ("; its seconds at the right." if named else ".")
    if len(story.lives) > len(lives):
        words += f" The newest {len(lives)} of {len(story.lives)}."
    markets = market_items(life.market for life in lives)
    states = state_items(one.kind for one in story.interruptions)
    return section("Nodes", words, legend([*markets, *states]) + drawn)
