"""Which pools may supply nodes now: FleetView + Demand + clock -> Plan. Pure.

    plan = plan_fleet(view, demand)

Ray's autoscaler says how many nodes the pending work needs; this says where they may come from. A
pool is open only while it is granted nodes: `max_workers = nodes that live + nodes granted`, never
below what lives, because the autoscaler stops busy raylets above a cap without a drain. Work goes
to on-prem hosts first, then to spot, cheapest first, and to on-demand only where a request names
it by label.

Knows no Ray, no cloud and no clock: the time is in the view. The same call runs live and in replay.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from rayburst.fleet.packing import Bin, LabelRule, Request, RequestKind, place
from rayburst.fleet.spec import Market

DRAIN_VISIBLE_S = 5.0
"""How long a draining node still counts under its cap: until the autoscaler has seen the drain.
Lowering the cap earlier would make it stop a healthy node of the same pool."""

POOL_COOLDOWN_S = 30.0
"""How long a pool stays closed after a launch failed, and ranks last after an interruption."""

BUDGET_LAG_S = 3.0
"""How long a decision may take to reach a host: two ticks and the host's own poll."""

_MARKET_RANK = {Market.ON_PREM: 0, Market.SPOT: 1, Market.ON_DEMAND: 2}
_MARKET_LABELS = ("rayburst.io/market", "ray.io/market-type")


class NodeState(StrEnum):
    """A node's life as the planner sees it."""

    LAUNCHING = "launching"
    RUNNING = "running"
    DRAINING = "draining"


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeView:
    """One host that was asked for and is not gone. Times are unix seconds.

    Attributes:
        available: resources free now; for a launching node all it will have.
        idle_s: how long nothing ran on it; 0 when busy or launching.
        draining_since: when its drain was first seen; None unless draining.
    """

    host: str
    pool: str
    state: NodeState
    total: Mapping[str, float]
    available: Mapping[str, float]
    idle_s: float = 0.0
    draining_since: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolView:
    """One pool: what it offers, at what price, and how it behaved lately.

    Attributes:
        promised: nodes granted a moment ago that are not on record as hosts yet. They are on their
            way through the autoscaler: taking a grant back then would end them half started.
    """

    name: str
    market: Market
    resources: Mapping[str, float]
    labels: Mapping[str, str]
    price_usd_per_hour: float | None
    min_hosts: int
    max_hosts: int
    failed_at: float | None = None
    failed_why: str = ""
    interrupted_at: float | None = None
    promised: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class FleetView:
    """All that the planner may know about supply, at the time `now` (unix seconds).

    Attributes:
        drain_s: how long a node that is sent away may still work.
        budget_usd: all that may ever be spent; None is no limit.
        spent_usd: what was spent up to `now`.
    """

    now: float
    idle_timeout_s: float
    drain_s: float = 30.0
    budget_usd: float | None = None
    spent_usd: float = 0.0
    pools: Sequence[PoolView]
    nodes: Sequence[NodeView]


@dataclass(frozen=True, kw_only=True, slots=True)
class Demand:
    """What Ray reports as pending, and what was requested to be there in any case."""

    requests: Sequence[Request] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Caps:
    """What the autoscaler may have of one node type."""

    min: int
    max: int


class ActionKind(StrEnum):
    """What a plan can ask for beside caps."""

    OPEN = "open"
    RELEASE = "release"
    DISMISS = "dismiss"
    UNMET = "unmet"


@dataclass(frozen=True, kw_only=True, slots=True)
class Action:
    """One decision with its reason in words and numbers.

    `open`: a pool may launch `count` nodes. `release`: an idle host is given back. `dismiss`: a
    working host gets notice, because the money is spent. `unmet`: `count` requests that no pool
    can serve now.
    """

    kind: ActionKind
    subject: str
    count: int = 1
    why: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Caps for every pool, and the actions that led to them."""

    caps: Mapping[str, Caps]
    actions: Sequence[Action] = field(default_factory=tuple)


def plan_fleet(view: FleetView, demand: Demand) -> Plan:
    """Decide caps and releases for one tick. Same input, same plan."""
    bins = [_bin(node, view) for node in view.nodes if node.state is not NodeState.DRAINING]
    bins += [_new_bin(pool) for pool in view.pools for _ in range(pool.promised)]
    unplaced, granted = _place_all(view, demand, bins)
    keep = _needed_by_floors(view, demand)
    releases = _releases(view, keep, granted)
    return Plan(
        caps={pool.name: _caps(view, pool, granted) for pool in view.pools},
        actions=(
            *_opened(view, granted),
            *releases,
            *_dismissals(view),
            *_unmet(view, unplaced),
        ),
    )


def _place_all(
    view: FleetView, demand: Demand, bins: list[Bin]
) -> tuple[list[Request], dict[str, list[Request]]]:
    """Place every request, on nodes there are, then on new ones; returns leftovers and grants."""
    granted: dict[str, list[Request]] = {}
    unplaced = []
    for request in sorted(demand.requests, key=_hardest_first):
        if place(request, bins):
            continue
        pool = _pool_for(request, view, granted)
        if pool is None:
            unplaced.append(request)
            continue
        granted.setdefault(pool.name, []).append(request)
        new = _new_bin(pool)
        bins.append(new)
        place(request, [new])
    return unplaced, granted


def _hardest_first(request: Request) -> tuple[bool, float]:
    """Picky requests before those that fit anywhere, so that these do not take their nodes."""
    return (not request.selector, -max(request.resources.values(), default=0.0))


def _pool_for(
    request: Request, view: FleetView, granted: Mapping[str, list[Request]]
) -> PoolView | None:
    candidates = [
        pool
        for pool in view.pools
        if _closed(pool, view) is None
        and _living(view, pool) + pool.promised + len(granted.get(pool.name, ())) < pool.max_hosts
        and (pool.market is not Market.ON_DEMAND or asks_for_on_demand(request.selector))
        and _new_bin(pool).fits(request)
    ]
    return min(candidates, key=lambda pool: _rank(pool, view.now), default=None)


def asks_for_on_demand(selector: Iterable[LabelRule]) -> bool:
    """Whether a selector names the on-demand market: the only way to it without a deadline."""
    return any(
        rule.key in _MARKET_LABELS and rule.negated is False and Market.ON_DEMAND in rule.values
        for rule in selector
    )


def _rank(pool: PoolView, now: float) -> tuple[int, bool, bool, float, str]:
    """Market first; then pools without a recent interruption; then the cheapest known price."""
    price = pool.price_usd_per_hour
    recent = pool.interrupted_at is not None and now - pool.interrupted_at < POOL_COOLDOWN_S
    return (_MARKET_RANK[pool.market], recent, price is None, price or 0.0, pool.name)


def _closed(pool: PoolView, view: FleetView) -> str | None:
    """Why nothing may be launched in a pool now; None when it may."""
    if pool.failed_at is not None and view.now - pool.failed_at < POOL_COOLDOWN_S:
        return f"{pool.name} failed {view.now - pool.failed_at:.0f} s ago: {pool.failed_why}"
    if view.budget_usd is not None and pool.price_usd_per_hour is None:
        return f"{pool.name} has no known price and the fleet has a budget"
    return _over_budget(view, pool.price_usd_per_hour or 0.0)


def _over_budget(view: FleetView, more_usd_per_hour: float = 0.0) -> str | None:
    """Why no more may be spent, with the drain of all that lives reserved; None when it may.

    A host that costs nothing is never too dear.
    """
    if view.budget_usd is None:
        return None
    prices = {pool.name: pool.price_usd_per_hour or 0.0 for pool in view.pools}
    rate = sum(prices.get(node.pool, 0.0) for node in view.nodes) + more_usd_per_hour
    reserve = rate * (view.drain_s + BUDGET_LAG_S) / 3600
    if rate == 0 or view.spent_usd + reserve < view.budget_usd:
        return None
    return (
        f"{view.spent_usd:.4f} USD are spent and {reserve:.4f} USD are needed to drain, "
        f"of a budget of {view.budget_usd:.4f} USD"
    )


def _dismissals(view: FleetView) -> list[Action]:
    """Notice to every host that costs money, in time to be gone inside the budget."""
    if (why := _over_budget(view)) is None:
        return []
    costs = {pool.name for pool in view.pools if pool.price_usd_per_hour != 0.0}
    return [
        Action(kind=ActionKind.DISMISS, subject=node.host, why=why)
        for node in sorted(view.nodes, key=lambda node: node.host)
        if node.pool in costs and node.state is not NodeState.DRAINING
    ]


def _living(view: FleetView, pool: PoolView) -> int:
    return sum(node.pool == pool.name for node in view.nodes)


def _caps(view: FleetView, pool: PoolView, granted: Mapping[str, list[Request]]) -> Caps:
    counted = sum(
        node.pool == pool.name and not _seen_draining(node, view.now) for node in view.nodes
    )
    living = _living(view, pool)
    most = max(pool.max_hosts - (living - counted), counted)
    asked = counted + pool.promised + len(granted.get(pool.name, ()))
    wanted = max(min(asked, most), min(pool.min_hosts, most))
    return Caps(min=min(pool.min_hosts, most), max=wanted)


def _seen_draining(node: NodeView, now: float) -> bool:
    """Whether the autoscaler no longer counts the node among those it may have."""
    if node.state is not NodeState.DRAINING:
        return False
    return node.draining_since is not None and now - node.draining_since >= DRAIN_VISIBLE_S


def _bin(node: NodeView, view: FleetView) -> Bin:
    labels = next((pool.labels for pool in view.pools if pool.name == node.pool), {})
    return Bin.of(node.host, node.total, node.available, labels)


def _new_bin(pool: PoolView) -> Bin:
    return Bin.of(f"new-{pool.name}", pool.resources, pool.resources, pool.labels)


def _needed_by_floors(view: FleetView, demand: Demand) -> set[str]:
    """Hosts that a standing request (a floor) needs, cheapest markets kept first."""
    order = {pool.name: _rank(pool, view.now) for pool in view.pools}
    nodes = sorted(
        (n for n in view.nodes if n.state is not NodeState.DRAINING and n.pool in order),
        key=lambda n: (order[n.pool], n.idle_s, n.host),
    )
    bins = [_bin(node, view) for node in nodes]
    for request in demand.requests:
        if request.kind is RequestKind.FLOOR:
            place(request, bins)
    return {b.name for b in bins if b.used}


def _releases(
    view: FleetView, keep: set[str], granted: Mapping[str, list[Request]]
) -> list[Action]:
    """Hosts idle for too long that nothing standing needs; none while more are being asked for."""
    releases = []
    for pool in view.pools:
        spare = _living(view, pool) - pool.min_hosts
        for node in sorted(view.nodes, key=lambda n: (-n.idle_s, n.host)):
            if node.pool != pool.name or node.state is not NodeState.RUNNING or spare <= 0:
                continue
            if node.idle_s < view.idle_timeout_s or node.host in keep or granted.get(pool.name):
                continue
            spare -= 1
            why = f"idle for {node.idle_s:.0f} s, the limit is {view.idle_timeout_s:.0f} s"
            releases.append(Action(kind=ActionKind.RELEASE, subject=node.host, why=why))
    return releases


def _opened(view: FleetView, granted: Mapping[str, list[Request]]) -> list[Action]:
    actions = []
    for pool in view.pools:
        if requests := granted.get(pool.name):
            price = pool.price_usd_per_hour
            cost = "at an unknown price" if price is None else f"at {price:.4g} USD/h"
            why = f"{len(requests)} node(s) for {_summary(requests)}, {pool.market} {cost}"
            actions.append(
                Action(kind=ActionKind.OPEN, subject=pool.name, count=len(requests), why=why)
            )
    return actions


def _unmet(view: FleetView, unplaced: Sequence[Request]) -> list[Action]:
    grouped: dict[str, int] = {}
    for request in unplaced:
        text = str(request)
        grouped[text] = grouped.get(text, 0) + 1
    closed = dict.fromkeys(why for pool in view.pools if (why := _closed(pool, view)))
    reason = "; ".join(closed) or "no open pool has room for it"
    return [
        Action(kind=ActionKind.UNMET, subject=text, count=count, why=reason)
        for text, count in sorted(grouped.items())
    ]


def _summary(requests: Sequence[Request]) -> str:
    texts = sorted({str(request) for request in requests})
    return texts[0] if len(texts) == 1 else f"{texts[0]} and {len(texts) - 1} other shape(s)"
