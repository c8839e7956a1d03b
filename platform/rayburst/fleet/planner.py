"""Which pools may supply nodes now: FleetView + Demand + clock -> Plan. Pure.

    plan = plan_fleet(view, demand)

Ray's autoscaler says how many nodes the pending work needs; this says where they may come from. A
pool is open only while it is granted nodes: `max_workers = nodes that live + nodes granted`, never
below what lives, because the autoscaler stops busy raylets above a cap without a drain.

Jobs that say what they need come first, each with a grant of its own (`grants.py`). All other
demand of Ray goes to on-prem hosts, then to spot, cheapest first and not all to what would be lost
together (`spread.py`), and to on-demand only where a request names it by label.

Knows no Ray, no cloud and no clock: the time is in the view. Same input, same plan.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from rayburst.fleet.deadline import DeadlinePolicy
from rayburst.fleet.grants import grant_jobs
from rayburst.fleet.jobs import JobView
from rayburst.fleet.keeping import needed_hosts
from rayburst.fleet.packing import (
    Bin,
    LabelRule,
    Request,
    RequestKind,
    Shelf,
    hardest_first,
    new_bin,
)
from rayburst.fleet.spec import Market
from rayburst.fleet.spread import LOOK_AT
from rayburst.fleet.stock import PoolStock
from rayburst.fleet.supply import Supply
from rayburst.fleet.view import (
    Action,
    ActionKind,
    Caps,
    Demand,
    FleetView,
    NodeState,
    NodeView,
    Plan,
)
from rayburst.train.grants import Ask, Grant

DRAIN_VISIBLE_S = 5.0
"""How long a draining node still counts under its cap: until the autoscaler has seen the drain.
Lowering the cap earlier would make it stop a healthy node of the same pool."""

_MARKET_LABELS = ("rayburst.io/market", "ray.io/market-type")


def plan_fleet(
    view: FleetView,
    demand: Demand,
    *,
    policy: DeadlinePolicy | None = None,
    span_any: bool = False,
) -> Plan:
    """Decide caps, grants, launches and removals for one tick.

    Args:
        policy: keeps solved tables between calls; what it decides follows from the input alone.
        span_any: whether gangs may lie over several domains unless their job says otherwise.
    """
    occupied = {host for job in demand.jobs if job.ask for host in job.ask.hosts}
    supply = Supply(view, occupied)
    grants, said = grant_jobs(demand, supply, policy or DeadlinePolicy(), span_any=span_any)
    requests = without_planned(demand.requests, demand.jobs, demand.ended)
    claimed = {h for grant in grants.values() for h in (*grant.hosts, *grant.coming)} | occupied
    unplaced = _place_all(supply, requests, claimed)
    keep = needed_hosts(supply, requests, claimed) | claimed
    return Plan(
        caps={stock.view.name: _caps(view, stock) for stock in supply.pools.values()},
        grants=grants,
        actions=(
            *_launches(supply),
            *said,
            *_releases(supply, keep),
            *_dismissals(supply),
            *_unmet(supply, unplaced),
        ),
    )


def without_planned(
    requests: Sequence[Request], jobs: Sequence[JobView], ended: Sequence[Ask] = ()
) -> list[Request]:
    """Requests less those of planned jobs: a trainer asks for its most, whatever it has.

    Ray's requests name no job, so as many of a job's shape are taken out as it asks for: standing
    ones, and the bundles of the group that a job with a grant is just starting.
    """
    standing: Counter[object] = Counter()
    for ask in ended:
        standing[_shape(ask.resources)] += ask.most
    starting: Counter[object] = Counter()
    for job in jobs:
        if job.ask is not None:
            standing[_shape(job.ask.resources)] += job.ask.most
            if job.grant is not None and job.grant.hosts and not job.ask.hosts:
                starting[_shape(job.ask.resources)] += job.ask.most
    if not standing:
        return list(requests)
    left = []
    for request in requests:
        shape = _shape(request.resources)
        planned = standing if request.kind is RequestKind.FLOOR else starting
        if planned[shape] > 0 and (request.kind is RequestKind.FLOOR or request.in_gang):
            planned[shape] -= 1
        else:
            left.append(request)
    return left


def _shape(resources: Mapping[str, float]) -> object:
    return frozenset([one for one in resources.items() if one[1] > 0])


def _place_all(supply: Supply, requests: Sequence[Request], claimed: set[str]) -> list[Request]:
    """Place every request, on nodes there are, then on new ones; returns the leftovers."""
    if not requests:
        return []
    shelf = Shelf()
    for node in supply.view.nodes:
        if node.state is not NodeState.DRAINING and node.host not in claimed:
            _shelve(shelf, supply, node)
    for stock in supply.pools.values():
        if stock.promised:
            empty = new_bin(stock.view.name, stock.view.resources, stock.view.labels)
            shelf.put(empty, stock.promised)
    unplaced = []
    for request, count in hardest_first(requests):
        left, ways = count, request.ways()
        for way in ways:  # Ray takes any node that is free and will do, before one is launched
            left -= shelf.place(way, left)
        for way in ways:
            left -= _launch_for(way, left, supply, shelf)
        unplaced += [request] * left
    return unplaced


def _shelve(shelf: Shelf, supply: Supply, node: NodeView) -> None:
    stock = supply.pools.get(node.pool)
    labels = stock.view.labels if stock else {}
    shelf.add(node.pool, node.total, node.available, labels)


def _launch_for(request: Request, count: int, supply: Supply, shelf: Shelf) -> int:
    """New nodes for equal requests, from the best pools that fit and have room; returns for how
    many."""
    if not count:
        return 0
    fitting, served = _fitting(request, supply), 0
    near = list(itertools.islice(fitting, LOOK_AT))
    while served < count and near:
        index = supply.crowd.best([stock for stock, _ in near])
        stock, empty = near[index]
        if not supply.launch(stock, str(request)):
            near = [*near[:index], *near[index + 1 :], *itertools.islice(fitting, 1)]
            continue
        stock.aside = stock.aside or index > 0
        bin_ = empty.copy(empty.name)
        served += bin_.take_some(request, count - served)
        shelf.put(bin_)
    return served


def _fitting(request: Request, supply: Supply) -> Iterator[tuple[PoolStock, Bin]]:
    """Pools that a request may open and fits, best first, each with an empty node of it."""
    asks = asks_for_on_demand(request.selector)
    for stock in supply.order:
        if stock.room > 0 and (asks or stock.view.market is not Market.ON_DEMAND):
            empty = new_bin(stock.view.name, stock.view.resources, stock.view.labels)
            if empty.fits(request):
                yield stock, empty


def asks_for_on_demand(selector: Iterable[LabelRule]) -> bool:
    """Whether a selector names the on-demand market: the only way to it without a deadline."""
    return any(
        rule.key in _MARKET_LABELS and rule.negated is False and Market.ON_DEMAND in rule.values
        for rule in selector
    )


def _dismissals(supply: Supply) -> list[Action]:
    """Notice to every host that costs money, in time to be gone inside the fleet's budget."""
    if (why := supply.over_budget()) is None:
        return []
    costs = {name for name, s in supply.pools.items() if s.view.price_usd_per_hour != 0.0}
    return [
        Action(kind=ActionKind.DRAIN, subject=node.host, why=why)
        for node in sorted(supply.view.nodes, key=lambda node: node.host)
        if node.pool in costs and node.state is not NodeState.DRAINING
    ]


def _caps(view: FleetView, stock: PoolStock) -> Caps:
    """Room for what lives and what is granted. What is on its way is also the least: a job that
    moves has a node for its standing request already, so Ray would see no need for the new one.
    """
    pool = stock.view
    living = len(stock.nodes)
    counted = living - sum(_seen_draining(node, view.now) for node in stock.draining)
    most = max(pool.max_hosts - (living - counted), counted)
    asked = counted + pool.promised + len(stock.launches)
    wanted = max(min(asked, most), min(pool.min_hosts, most))
    least = min(pool.min_hosts, most)
    if pool.promised or stock.launches:
        least = max(least, wanted)
    return Caps(min=least, max=wanted, more=max(wanted - counted, 0))


def _seen_draining(node: NodeView, now: float) -> bool:
    """Whether the autoscaler no longer counts a draining node among those it may have."""
    return node.draining_since is not None and now - node.draining_since >= DRAIN_VISIBLE_S


def _releases(supply: Supply, keep: set[str]) -> list[Action]:
    """Hosts idle for too long that nothing needs; none while more of their pool are asked for.

    A host is paid for its pool's shortest time in any case, and stays that long.
    """
    view, releases = supply.view, []
    for stock in supply.pools.values():
        pool, spare = stock.view, len(stock.nodes) - stock.view.min_hosts
        if stock.launches or pool.promised:
            continue
        idle = [
            n
            for n in stock.nodes
            if n.state is NodeState.RUNNING
            and n.idle_s >= view.idle_timeout_s
            and n.age_s >= pool.shortest_paid_s
            and n.host not in keep
        ]
        for node in sorted(idle, key=lambda n: (-n.idle_s, n.host))[: max(spare, 0)]:
            why = f"idle for {node.idle_s:.0f} s, the limit is {view.idle_timeout_s:.0f} s"
            releases.append(Action(kind=ActionKind.RELEASE, subject=node.host, why=why))
    return releases


def _launches(supply: Supply) -> list[Action]:
    actions = []
    for stock in supply.pools.values():
        if stock.launches:
            pool, count = stock.view, len(stock.launches)
            price = pool.price_usd_per_hour
            cost = "at an unknown price" if price is None else f"at {price:.4g} USD/h"
            why = f"{count} node(s) for {_summary(stock.launches)}, {pool.market} {cost}"
            if stock.aside:
                why += "; cheaper ones would be lost together with more of the fleet"
            actions.append(Action(kind=ActionKind.LAUNCH, subject=pool.name, count=count, why=why))
    return actions


def _unmet(supply: Supply, unplaced: Sequence[Request]) -> list[Action]:
    if not unplaced:
        return []
    grouped = Counter(str(request) for request in unplaced)
    closed = dict.fromkeys(why for s in supply.pools.values() if (why := supply.closed(s.view)))
    reason = "; ".join(closed) or "no open pool has room for it"
    return [
        Action(kind=ActionKind.UNMET, subject=text, count=count, why=reason)
        for text, count in sorted(grouped.items())
    ]


def _summary(texts: Sequence[str]) -> str:
    different = sorted(set(texts))
    if len(different) == 1:
        return different[0]
    return f"{different[0]} and {len(different) - 1} other(s)"


def claimed_hosts(grants: Mapping[str, Grant]) -> list[str]:
    """Every host that some job was granted, or that waits for one."""
    return sorted({h for grant in grants.values() for h in (*grant.hosts, *grant.coming)})
