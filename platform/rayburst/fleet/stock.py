"""One pool while a plan is made, and how pools are ranked. Pure."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from rayburst.fleet.backoff import Rest, rest_of
from rayburst.fleet.recorded import PRIOR
from rayburst.fleet.spec import Market
from rayburst.fleet.view import NodeView, PoolView

POOL_COOLDOWN_S = 30.0
"""How long a pool ranks last after an interruption."""

LONGEST_REST_S = {Market.ON_PREM: 480.0, Market.SPOT: 120.0, Market.ON_DEMAND: 60.0}
"""How long a pool stays closed at most after launches that failed; see `backoff.py`. That spot is
back shows by asking alone, and to ask costs a call: what waits for it should not miss much of it.
On-demand is the last resort of a deadline."""

MARKET_RANK = {Market.ON_PREM: 0, Market.SPOT: 1, Market.ON_DEMAND: 2}
_BUSY_EPSILON = 1e-6

Rank = tuple[int, bool, bool, float, str]


@dataclass(slots=True)
class PoolStock:
    """One pool while a plan is made."""

    view: PoolView
    rank: Rank
    nodes: list[NodeView] = field(default_factory=list)
    free: list[str] = field(default_factory=list)
    draining: list[NodeView] = field(default_factory=list)
    leaving: list[str] = field(default_factory=list)
    """Hosts that a job still runs on though its grant no longer names them."""
    promised: int = 0
    arriving: list[str] | None = None
    """Launching hosts that nobody holds, once somebody asked for them."""
    launches: list[str] = field(default_factory=list)
    """For whom each new node is launched."""
    aside: bool = False
    """Whether it was chosen though a cheaper pool had room: less would be lost together with it."""

    @property
    def price(self) -> float:
        return self.view.price_usd_per_hour or 0.0

    @property
    def room(self) -> int:
        """Nodes that could still be launched, were it open."""
        return self.view.max_hosts - len(self.nodes) - self.view.promised - len(self.launches)


def times(has: Mapping[str, float], needs: Mapping[str, float]) -> int:
    """How often something that needs so much fits; at least once where it needs nothing."""
    fits = [has.get(name, 0.0) // need for name, need in needs.items() if need > 0]
    return int(min(fits, default=1))


def unused(node: NodeView) -> bool:
    """Whether nothing runs on a node, as far as CPUs and GPUs tell."""
    return all(
        node.available.get(name, 0.0) >= node.total.get(name, 0.0) - _BUSY_EPSILON
        for name in ("CPU", "GPU")
    )


def lasts_s(pool: PoolView) -> float:
    """How long a host of a spot pool is likely to last from now on, or from its launch."""
    seen = pool.spot
    if seen is None:
        return PRIOR.expected_up_s(0.0)
    return seen.hazards.expected_up_s(seen.age_s if seen.up else 0.0)


def hosts_last_s(pool: PoolView, hosts: int) -> float:
    """How long a pool is likely to go on to have so many hosts; owned ones stay."""
    if pool.market is not Market.SPOT:
        return math.inf
    counted = pool.spot.lasts_s if pool.spot else ()
    return counted[hosts - 1] if 0 < hosts <= len(counted) else lasts_s(pool)


def kind(pool: PoolView) -> str:
    """The kind of its machines; one of which nothing is known is like no other."""
    return pool.family or f"pool {pool.name}"


def hit_lately(pools: Iterable[PoolView], now: float) -> set[tuple[str, str]]:
    """Domain and kind of the pools that lost a host within the cool-down."""
    return {
        (pool.domain, kind(pool))
        for pool in pools
        if pool.interrupted_at is not None and now - pool.interrupted_at < POOL_COOLDOWN_S
    }


def rank(pool: PoolView, hit: Collection[tuple[str, str]] = ()) -> Rank:
    """Market first; then pools without a recent interruption (of their own, or of one with the same
    machines in the same domain: see `hit_lately`); then the cheapest useful hour.

    A start is paid and does nothing, so an hour on a spot pool that lasts `L` seconds from now on
    costs its price times `(L + start) / L`. Pools of unknown price come last.
    """
    price = pool.price_usd_per_hour
    recent = bool(hit) and (pool.domain, kind(pool)) in hit
    cost = price or 0.0
    if cost and pool.spot is not None:
        cost *= 1 + pool.start_s / lasts_s(pool)
    return (MARKET_RANK[pool.market], recent, price is None, cost, pool.name)


def rest(pool: PoolView) -> Rest:
    """Until when a pool stays closed, and how many launches in a row failed."""
    return rest_of(pool.failures, longest_s=LONGEST_REST_S[pool.market])


def is_down(pool: PoolView, now: float) -> bool:
    """Whether a pool is closed after failed launches, or lost a host within the cool-down."""
    lost = pool.interrupted_at is not None and now - pool.interrupted_at < POOL_COOLDOWN_S
    return lost or now < rest(pool).until
