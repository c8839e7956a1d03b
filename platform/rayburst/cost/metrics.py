"""What a fleet costs and loses, as Prometheus metrics. The names here are what dashboards stand on.

    registry.register(FleetMetrics(lambda: sample))       # a sample is taken when somebody scrapes
    METRICS["rayburst_spent_usd_total"]                   # what it means, and its labels

The bookkeeper serves them at `http://HEAD:PORT/metrics`, on the fleet's own address.
"""

from __future__ import annotations

from collections import Counter as Counted
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from rayburst.cost.bill import Bill
from rayburst.cost.entries import Entry, usd_of
from rayburst.fleet.events import NodeEvent
from rayburst.fleet.taken import taken_away

METRICS: Mapping[str, tuple[str, str, tuple[str, ...]]] = {
    "rayburst_nodes": ("gauge", "living nodes", ("pool", "market", "state")),
    "rayburst_usd_per_hour": ("gauge", "what an hour costs as the fleet stands", ("market",)),
    "rayburst_pending_requests": ("gauge", "requests that wait for a node", ()),
    "rayburst_node_seconds_total": ("counter", "paid node-seconds", ("market",)),
    "rayburst_spent_usd_total": ("counter", "dollars of known price", ("market",)),
    "rayburst_unpriced_seconds_total": ("counter", "node-seconds of unknown price", ("market",)),
    "rayburst_interruptions_total": ("counter", "nodes that were taken away", ("pool", "market")),
    "rayburst_purpose_usd": ("gauge", "dollars of the ledger by purpose", ("purpose",)),
    "rayburst_job_usd": ("gauge", "dollars of the ledger by job; nobody is empty", ("job",)),
}
"""Type, meaning and labels of every metric, by the name that is scraped."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """A fleet at one moment, as the bookkeeper saw it."""

    events: Sequence[NodeEvent] = ()
    bill: Bill | None = None
    entries: Sequence[Entry] = field(default_factory=tuple)
    pending: int = 0


class FleetMetrics:
    """A collector for prometheus_client; asks for a sample at every scrape."""

    def __init__(self, sample: Callable[[], Sample]) -> None:
        self._sample = sample

    def collect(self) -> Iterator[Metric]:
        """All of METRICS, in order."""
        sample = self._sample()
        for name, values in values_of(sample).items():
            kind, words, labels = METRICS[name]
            make = CounterMetricFamily if kind == "counter" else GaugeMetricFamily
            family = make(name, words, labels=labels)
            for key, value in sorted(values.items()):
                family.add_metric(key, value)
            yield family


def values_of(sample: Sample) -> dict[str, dict[tuple[str, ...], float]]:
    """Every metric's value by its labels. Pure."""
    living = _living(sample.events)
    rates: dict[tuple[str, ...], float] = {}
    for event, _ in living.values():
        if event.price_usd_per_hour is not None:
            key = (event.market,)
            rates[key] = rates.get(key, 0.0) + event.price_usd_per_hour
    states = Counted((event.pool, event.market, state) for event, state in living.values())
    lost = Counted((one.pool, one.market) for one in taken_away(sample.events))
    markets = sample.bill.by_market if sample.bill else ()
    return {
        "rayburst_nodes": {key: float(count) for key, count in states.items()},
        "rayburst_usd_per_hour": rates,
        "rayburst_pending_requests": {(): float(sample.pending)},
        "rayburst_node_seconds_total": {(m.market,): m.seconds for m in markets},
        "rayburst_spent_usd_total": {(m.market,): m.usd for m in markets},
        "rayburst_unpriced_seconds_total": {
            (m.market,): m.seconds_of_unknown_price for m in markets
        },
        "rayburst_interruptions_total": {key: float(n) for key, n in lost.items()},
        "rayburst_purpose_usd": _usd_by(sample.entries, lambda e: e.line.purpose),
        "rayburst_job_usd": _usd_by(sample.entries, lambda e: e.line.owner.job),
    }


def _living(events: Sequence[NodeEvent]) -> dict[str, tuple[NodeEvent, str]]:
    """Nodes that are not gone: how they were requested, and their state."""
    words = {"requested": "starting", "up": "up", "notice": "draining", "draining": "draining"}
    found: dict[str, tuple[NodeEvent, str]] = {}
    for event in sorted(events, key=lambda e: e.t):
        if event.kind == "gone":
            found.pop(event.node, None)
        else:
            first = found[event.node][0] if event.node in found else event
            found[event.node] = (first, words[event.kind])
    return found


def _usd_by(entries: Sequence[Entry], key: Callable[[Entry], str]) -> dict[tuple[str, ...], float]:
    nano: dict[str, int] = {}
    for entry in entries:
        nano[key(entry)] = nano.get(key(entry), 0) + (entry.nano_usd or 0)
    return {(name,): float(usd_of(value)) for name, value in nano.items()}
