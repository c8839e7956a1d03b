"""Who pays for every millisecond of a node, what for, and how much. Pure.

    lines = attribute(facts, prices=LaunchPrices(), period=(start_ms, end_ms), now_ms=now_ms)

A node's life, from request to end, is cut wherever anything about it changes. In each piece
the owners of what was held share the node by dominant resource; what is left over is idle. Of
a job with a run log the log says what its time was (useful, lost, restarting, ...); of others held
time is useful. The start of a node belongs to the first who held something on it.

Amounts are exact: of every node and period the milliseconds sum to its life, and the nano-dollars
to the rounded cost of its life up to the period's end less that up to its beginning, so that
periods add up to whole lives without drift.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from typing import Protocol

from rayburst.cost.apportion import apportion
from rayburst.cost.entries import NOBODY, Entry, Line, Owner, added, nano_of
from rayburst.cost.facts import Facts, Hold, dominant_shares
from rayburst.cost.moved import Moved, moved_entries, read_moved
from rayburst.report.history import Interval, NodeLife, Run, merged, node_lives, read_run
from rayburst.report.spend import blocked_on_checkpoints, layers

_MS_PER_HOUR = 3_600_000
_NEVER_MS = 2**63
_OF_A_RUN: Mapping[str, str] = {
    "training": "useful",
    "redone": "lost",
    "checkpoint": "checkpoint",
    "restarting": "restarting",
    "waiting": "waiting",
}

Piece = tuple[int, int, Decimal | None]
_Share = tuple[Owner, str, Fraction]
_Key = tuple[Owner, str, Decimal | None]


class Prices(Protocol):
    """What nodes cost over time."""

    def pieces(self, life: NodeLife, start_ms: int, end_ms: int) -> Sequence[Piece]:
        """[start, end) cut where the price changes: (from, to, USD per hour or None)."""


class LaunchPrices:
    """Every node at the price it was launched at, which is what its events hold."""

    def pieces(self, life: NodeLife, start_ms: int, end_ms: int) -> Sequence[Piece]:
        """One piece."""
        usd = life.price_usd_per_hour
        return [(start_ms, end_ms, None if usd is None else Decimal(str(usd)))]


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """Where something holds: sorted, disjoint intervals, asked for in logarithmic time."""

    starts: Sequence[int]
    ends: Sequence[int]

    @classmethod
    def of(cls, intervals: Sequence[Interval]) -> Layer:
        joined = merged(intervals)
        return cls([start for start, _ in joined], [end for _, end in joined])

    def holds(self, at: int) -> bool:
        place = bisect_right(self.starts, at) - 1
        return place >= 0 and at < self.ends[place]

    def edges(self, start: int, end: int) -> Iterator[int]:
        """Where it begins or ends within [start, end]."""
        for side in (self.starts, self.ends):
            yield from side[bisect_left(side, start) : bisect_right(side, end)]


_Runs = Sequence[tuple[Owner, Mapping[str, Layer]]]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Story:
    """Facts as intervals, worked out once for all periods."""

    lives: Sequence[NodeLife]
    holds: Mapping[str, Sequence[Hold]]
    runs: Sequence[tuple[Owner, Run, Mapping[int, Sequence[Interval]]]]
    moved: Sequence[Moved]
    facts: Facts
    _on: dict[tuple[str, int], _Runs] = field(default_factory=dict)  # worked out when asked for

    @property
    def first_ms(self) -> int | None:
        """When the first node was requested, or the first charge made."""
        times = [life.requested_ms for life in self.lives]
        times += [charge.t_ms for charge in self.facts.charges]
        return min(times, default=None)


def tell(facts: Facts) -> Story:
    """Read facts into intervals, and find whose runs the run logs tell of."""
    lives = node_lives([asdict(event) for event in facts.events])
    by_node: dict[str, list[Hold]] = defaultdict(list)
    for hold in facts.holds:
        by_node[hold.node].append(hold)
    read = {name: read_run(facts.runs[name]) for name in sorted(facts.runs)}
    owners = {name: _owners_of(name, run, by_node) for name, run in read.items()}
    models = _models(owners)
    for node, held in by_node.items():
        by_node[node] = [replace(h, owner=models.get(h.owner, h.owner)) for h in held]
    runs = []
    moved: list[Moved] = []
    for name, run in read.items():
        whose = [models.get(owner, owner) for owner in owners[name]]
        if not whose:  # nobody was seen to hold anything: the log itself says who sat where
            whose = [Owner(job=name, model=name)]
            for hold in _tenures_as_holds(run, whose[0]):
                by_node[hold.node].append(hold)
        blocked = blocked_on_checkpoints(facts.runs[name])
        runs += [(owner, run, blocked) for owner in whose]
        moved += read_moved(facts.runs[name], run, lives, whose[0])
    return Story(lives=lives, holds=by_node, runs=runs, moved=moved, facts=facts)


def attribute(story: Story, *, prices: Prices, period: Interval, now_ms: int) -> list[Entry]:
    """The entries of one period, in order. Times after `now_ms` have not happened."""
    found: list[Entry] = []
    for life in story.lives:
        span = (max(period[0], life.requested_ms), min(period[1], life.end_ms(now_ms)))
        if span[1] > span[0]:
            found += _entries(life, span, story, prices, period)
    charged = _charged(story.facts, period)
    return added([*found, *charged, *moved_entries(story.moved, period)])


def _charged(facts: Facts, period: Interval) -> Iterator[Entry]:
    for charge in facts.charges:
        if period[0] <= charge.t_ms < period[1]:
            line = Line(
                start_ms=period[0],
                end_ms=period[1],
                node="",
                pool="",
                market="",
                owner=charge.owner,
                purpose=charge.purpose,
                unit=charge.unit,
            )
            yield Entry(line=line, quantity=charge.quantity, nano_usd=charge.nano_usd)


def _entries(
    life: NodeLife, span: Interval, story: Story, prices: Prices, period: Interval
) -> Iterator[Entry]:
    weights: dict[_Key, Fraction] = defaultdict(Fraction)
    for start, end, usd in prices.pieces(life, *span):
        for part, shares in _pieces(life, (start, end), story):
            for owner, purpose, share in shares:
                weights[owner, purpose, usd] += share * part
    times = apportion(span[1] - span[0], weights)
    money = _money(life, span, prices, weights)
    for key in weights:
        owner, purpose, usd = key
        line = Line(
            start_ms=period[0],
            end_ms=period[1],
            node=life.node,
            pool=life.pool,
            market=life.market,
            owner=owner,
            purpose=purpose,
            usd_per_hour="" if usd is None else str(usd),
        )
        yield Entry(line=line, quantity=times[key], nano_usd=money.get(key))


def _money(
    life: NodeLife, span: Interval, prices: Prices, weights: Mapping[_Key, Fraction]
) -> dict[_Key, int]:
    known = {key: w * Fraction(key[2]) for key, w in weights.items() if key[2] is not None}
    before, after = (cost_nano(life, end, prices) for end in span)
    if after == before or not any(known.values()):
        return dict.fromkeys(known, 0)
    return apportion(after - before, known)


def cost_nano(life: NodeLife, end_ms: int, prices: Prices) -> int:
    """What a node cost from its request to `end_ms`, rounded once; unknown prices add nothing."""
    total = Fraction(0)
    for start, end, usd in prices.pieces(life, life.requested_ms, end_ms):
        if usd is not None:
            total += (end - start) * Fraction(usd)
    return nano_of(total / _MS_PER_HOUR)


def _pieces(life: NodeLife, span: Interval, story: Story) -> Iterator[tuple[int, list[_Share]]]:
    """(milliseconds, shares of the node that sum to 1), piece by piece over the span."""
    holds = [h for h in story.holds.get(life.node, ()) if _lies_in(h, life)]
    runs = _runs_on(life, story)
    edges = {*span, *_edges(life, holds)}
    edges |= {at for _, by in runs for layer in by.values() for at in layer.edges(*span)}
    cuts = sorted(at for at in edges if span[0] <= at <= span[1])
    first = min(holds, key=lambda h: (h.start_ms, h.id), default=None)
    for start, end in pairwise(cuts):
        if life.up_ms is None or start < life.up_ms:
            owner = NOBODY if first is None else first.owner
            yield end - start, [(owner, "restarting" if first else "idle", Fraction(1))]
        else:
            yield end - start, _shares(start, holds, runs)


def _shares(at: int, holds: Sequence[Hold], runs: _Runs) -> list[_Share]:
    now = [h for h in holds if h.start_ms <= at < _end(h)]
    held, works = dominant_shares(now), {h.owner for h in now if not h.is_reserved}
    shares = [
        (owner, _purpose(owner, at, runs, works=owner in works), share)
        for owner, share in sorted(held.items())
    ]
    left = 1 - sum(held.values(), Fraction(0))
    return [*shares, (NOBODY, "idle", left)] if left else shares


def _purpose(owner: Owner, at: int, runs: _Runs, *, works: bool) -> str:
    mine = [by for whose, by in runs if whose == owner]
    if not mine:
        return "useful" if works else "waiting"
    for layer, purpose in _OF_A_RUN.items():
        if any(by[layer].holds(at) for by in mine):
            return purpose
    return "waiting"


def _runs_on(life: NodeLife, story: Story) -> _Runs:
    """What each run did on this node, by layer; runs that never sat on it are left out."""
    key = (life.node, life.requested_ms)
    if key not in story._on:
        found = []
        for owner, run, blocked in story.runs:
            if any(tenure.host == life.node for tenure in run.tenures):
                by = layers(life, run, blocked, (life.requested_ms, _NEVER_MS))
                found.append((owner, {name: Layer.of(by[name]) for name in _OF_A_RUN}))
        story._on[key] = found
    return story._on[key]


def _edges(life: NodeLife, holds: Sequence[Hold]) -> Iterator[int]:
    if life.up_ms is not None:
        yield life.up_ms
    for hold in holds:
        yield hold.start_ms
        if hold.end_ms is not None:
            yield hold.end_ms


def _lies_in(hold: Hold, life: NodeLife) -> bool:
    """Whether a hold belongs to this stay of its node, and not to an earlier or later one."""
    gone = life.gone_ms
    return _end(hold) > life.requested_ms and (gone is None or hold.start_ms < gone)


def _end(hold: Hold) -> int:
    return _NEVER_MS if hold.end_ms is None else hold.end_ms


def _owners_of(name: str, run: Run, by_node: Mapping[str, Sequence[Hold]]) -> list[Owner]:
    """Whose holds lie under the run's workers, the longest time first.

    Who has another model did not train it. A run that was submitted again has several: the next
    one trained where the first held nothing.
    """
    stays: list[dict[Owner, int]] = []
    together: dict[Owner, int] = defaultdict(int)
    for tenure in run.tenures:
        under: dict[Owner, int] = defaultdict(int)
        for hold in by_node.get(tenure.host, ()):
            shared = min(tenure.end_ms, _end(hold)) - max(tenure.start_ms, hold.start_ms)
            if shared > 0 and hold.owner.model in ("", name):
                under[hold.owner] += shared
                together[hold.owner] += shared
        stays.append(under)
    ranked = sorted(sorted(together), key=lambda one: -together[one])
    trained = {next(one for one in ranked if one in under) for under in stays if under}
    return [one for one in ranked if one in trained]


def _models(owners: Mapping[str, Sequence[Owner]]) -> dict[Owner, Owner]:
    """Owners of one run with it as their model; a search, which has many, is left as it is."""
    trained: dict[Owner, list[str]] = defaultdict(list)
    for name, whose in owners.items():
        for owner in whose:
            trained[owner].append(name)
    return {
        owner: replace(owner, model=names[0])
        for owner, names in trained.items()
        if len(names) == 1 and not owner.model
    }


def _tenures_as_holds(run: Run, owner: Owner) -> Iterator[Hold]:
    for tenure in run.tenures:
        yield Hold(
            id=f"{owner.job}-{tenure.rank}-{tenure.start_ms}",
            node=tenure.host,
            owner=owner,
            start_ms=tenure.start_ms,
            end_ms=tenure.end_ms,
        )
