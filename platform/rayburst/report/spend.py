"""What every node-second was spent on.

Pure: node events and the run log in, milliseconds by purpose out. A node's life, from
requested to gone, is cut at every edge of everything known about it; each piece counts once,
for the first purpose in PURPOSES that holds then. So the purposes of a node sum to its life
to the millisecond, whatever the logs hold. It knows no prices and draws nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rayburst.report.history import Event, Interval, NodeLife, Run, ms, node_lives, read_run

# In order of precedence. Keys are stable; words for readers stand beside them.
PURPOSES: Mapping[str, str] = {
    "starting": "node starting",
    "training": "training",
    "redone": "steps computed again",
    "checkpoint": "blocked on checkpoints",
    "restarting": "starting and restarting workers",
    "waiting": "worker waiting",
    "draining": "draining, no worker",
    "outside": "before and after training",
    "idle": "no worker on the node",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeSpend:
    """The seconds of one life of one node, in milliseconds by purpose (see PURPOSES)."""

    node: str
    pool: str
    market: str
    total_ms: int
    by_purpose_ms: Mapping[str, int]


def spend(node_events: Sequence[Event], run_log: Sequence[Event], *, end: float) -> list[NodeSpend]:
    """Splits the life of every node by purpose, in the order the nodes were requested.

    `end` (unix seconds) closes the lives of nodes that are still there.
    """
    run = read_run(run_log)
    blocked = blocked_on_checkpoints(run_log)
    return [_node_spend(life, run, blocked, ms(end)) for life in node_lives(node_events)]


def summed(parts: Iterable[NodeSpend]) -> dict[str, int]:
    """Milliseconds by purpose over several nodes, every purpose present."""
    total = dict.fromkeys(PURPOSES, 0)
    for part in parts:
        for purpose, spent_ms in part.by_purpose_ms.items():
            total[purpose] += spent_ms
    return total


def _node_spend(
    life: NodeLife, run: Run, blocked: Mapping[int, Sequence[Interval]], horizon_ms: int
) -> NodeSpend:
    span = (life.requested_ms, life.end_ms(horizon_ms))
    spent = partition(span, layers(life, run, blocked, span))
    return NodeSpend(
        node=life.node,
        pool=life.pool,
        market=life.market,
        total_ms=span[1] - span[0],
        by_purpose_ms=spent,
    )


def layers(
    life: NodeLife, run: Run, blocked: Mapping[int, Sequence[Interval]], span: Interval
) -> dict[str, list[Interval]]:
    """Where each purpose holds on this node; they may overlap, precedence decides."""
    tenures = [t for t in run.tenures if t.host == life.node]
    steps = [s for s in run.steps if s.host == life.node]
    sat = [(t.start_ms, t.end_ms) for t in tenures]
    layers = {
        "starting": [(span[0], span[1] if life.up_ms is None else life.up_ms)],
        "training": [(s.start_ms, s.end_ms) for s in steps if not s.redone],
        "redone": [(s.start_ms, s.end_ms) for s in steps if s.redone],
        "checkpoint": [
            held
            for t in tenures
            for held in blocked.get(t.rank, ())
            if held[0] < t.end_ms and held[1] > t.start_ms
        ],
        "restarting": [piece for c in run.changeovers for piece in _stalled(c, sat)],
        "waiting": sat,
        "draining": [] if life.draining_ms is None else [(life.draining_ms, span[1])],
        "outside": [span] if run.window is None else _around(run, run.window, span),
        "idle": [span],
    }
    return layers


def _stalled(changeover: Interval, sat: Sequence[Interval]) -> list[Interval]:
    """The part of a changeover this node lost: all of it when it gets a worker in it."""
    if any(changeover[0] <= start < changeover[1] for start, _ in sat):
        return [changeover]
    return [(max(changeover[0], start), min(changeover[1], end)) for start, end in sat]


def _around(run: Run, window: Interval, span: Interval) -> list[Interval]:
    return [(span[0], window[0]), *run.between, (window[1], span[1])]


def blocked_on_checkpoints(run_log: Sequence[Event]) -> dict[int, list[Interval]]:
    """By rank, when training stood still for a checkpoint."""
    held: dict[int, list[Interval]] = defaultdict(list)
    for record in run_log:
        if record["kind"] in ("checkpoint", "snapshot"):
            start = ms(record["t"] - (record.get("blocked_s") or 0.0))
            held[record["rank"]].append((start, ms(record["t"])))
    return held


def partition(span: Interval, layers: Mapping[str, Sequence[Interval]]) -> dict[str, int]:
    """Milliseconds of `span` by layer: cut at every edge, each piece to the first that covers it.

    The last layer must cover the whole span; then the milliseconds sum to its length.
    """
    order = list(layers)
    changes: list[tuple[int, int, int]] = []
    for place, name in enumerate(order):
        for start, end in layers[name]:
            start, end = max(start, span[0]), min(end, span[1])
            if end > start:
                changes += [(start, place, 1), (end, place, -1)]
    spent = dict.fromkeys(order, 0)
    active = [0] * len(order)
    here = span[0]
    for at, place, change in sorted(changes):
        if at > here:
            spent[order[next(i for i, n in enumerate(active) if n)]] += at - here
            here = at
        active[place] += change
    return spent
