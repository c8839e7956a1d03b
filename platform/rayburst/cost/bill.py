"""What the fleet cost: node-seconds and dollars from the node event log. Pure.

    bill = make_bill(log.read(), now=time.time(), on_demand_usd_per_hour=3.06)
    bill.usd, bill.usd_if_on_demand, bill.by_market

A node is paid for from the moment it was requested until it is gone, at the price it was launched
at, by the second. A price that is not known stays unknown: its seconds are counted, its dollars
are not, and `usd_is_complete` says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rayburst.fleet.events import NodeEvent
from rayburst.fleet.spec import FleetSpec, Market
from rayburst.report.tables import Table


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeUsage:
    """One node's paid time; `end` is None while it lives. Times are unix seconds."""

    node: str
    pool: str
    market: str
    price_usd_per_hour: float | None
    start: float
    up: float | None
    end: float | None
    seconds: float
    why_gone: str

    @property
    def usd(self) -> float | None:
        if self.price_usd_per_hour is None:
            return None
        return self.seconds * self.price_usd_per_hour / 3600


@dataclass(frozen=True, kw_only=True, slots=True)
class MarketUsage:
    """Totals of one market."""

    market: str
    nodes: int
    seconds: float
    usd: float
    seconds_of_unknown_price: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Bill:
    """The sum, and what it is made of.

    Attributes:
        usd_if_on_demand: the same node-seconds at the fleet's on-demand price; None if that is
        unknown.
    """

    nodes: Sequence[NodeUsage]
    by_market: Sequence[MarketUsage]
    usd: float
    usd_is_complete: bool
    usd_if_on_demand: float | None

    @property
    def seconds(self) -> float:
        return sum(node.seconds for node in self.nodes)

    def summary(self) -> str:
        """One line: dollars, seconds, and the same on on-demand."""
        usd = f"{self.usd:.4f} USD" if self.usd_is_complete else f"at least {self.usd:.4f} USD"
        text = f"{usd} for {self.seconds:.0f} node-seconds"
        if self.usd_if_on_demand:
            saved = 1 - self.usd / self.usd_if_on_demand
            text += f"; all on-demand {self.usd_if_on_demand:.4f} USD ({saved:.0%} saved)"
        return text

    def table(self) -> Table:
        rows = [
            (
                node.node,
                node.market,
                f"{node.seconds:.0f}",
                "unknown" if node.price_usd_per_hour is None else f"{node.price_usd_per_hour:.2f}",
                "unknown" if node.usd is None else f"{node.usd:.4f}",
                node.why_gone or "living",
            )
            for node in self.nodes
        ]
        return Table("cost", ("node", "market", "seconds", "USD/h", "USD", "ended"), rows)

    def to_dict(self) -> dict[str, Any]:
        """The bill as JSON takes it."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.table()}\n{self.summary()}"

    def _repr_html_(self) -> str:
        return f"{self.table()._repr_html_()}<p>{self.summary()}</p>"


def make_bill(
    events: Iterable[NodeEvent], *, now: float, on_demand_usd_per_hour: float | None
) -> Bill:
    """Sum up node events as of `now` (unix seconds). The order of events does not matter."""
    by_node: dict[str, dict[str, NodeEvent]] = {}
    for event in events:
        by_node.setdefault(event.node, {})[event.kind] = event
    nodes = sorted(
        (_usage(kinds, now) for kinds in by_node.values() if "requested" in kinds),
        key=lambda usage: (usage.start, usage.node),
    )
    seconds = sum(node.seconds for node in nodes)
    return Bill(
        nodes=nodes,
        by_market=[_market(name, nodes) for name in sorted({n.market for n in nodes})],
        usd=sum(node.usd or 0.0 for node in nodes),
        usd_is_complete=all(node.usd is not None for node in nodes),
        usd_if_on_demand=(
            None if on_demand_usd_per_hour is None else seconds * on_demand_usd_per_hour / 3600
        ),
    )


def on_demand_price(spec: FleetSpec) -> float | None:
    """The cheapest known on-demand price of a fleet, USD per hour; None when it has none."""
    prices = [
        pool.price_usd_per_hour
        for pool in spec.pools
        if pool.market is Market.ON_DEMAND and pool.price_usd_per_hour is not None
    ]
    return min(prices, default=None)


def _usage(kinds: dict[str, NodeEvent], now: float) -> NodeUsage:
    requested, gone, up = kinds["requested"], kinds.get("gone"), kinds.get("up")
    return NodeUsage(
        node=requested.node,
        pool=requested.pool,
        market=requested.market,
        price_usd_per_hour=requested.price_usd_per_hour,
        start=requested.t,
        up=up.t if up else None,
        end=gone.t if gone else None,
        seconds=max(0.0, (gone.t if gone else now) - requested.t),
        why_gone=gone.why if gone else "",
    )


def _market(name: str, nodes: Sequence[NodeUsage]) -> MarketUsage:
    mine = [node for node in nodes if node.market == name]
    return MarketUsage(
        market=name,
        nodes=len(mine),
        seconds=sum(node.seconds for node in mine),
        usd=sum(node.usd or 0.0 for node in mine),
        seconds_of_unknown_price=sum(node.seconds for node in mine if node.usd is None),
    )
