"""Which hosts stay though nothing runs on them: something needs them, or waits for them. Pure.

A placement group runs nowhere until there is room for all of it. The first hosts that came for one
are idle until the last has joined, and longer than a short `idle_timeout`: given back, they would
be asked for again at once, and so on without an end.
"""

from __future__ import annotations

import math

from rayburst.fleet.packing import Bin, Request, RequestKind, hardest_first, place
from rayburst.fleet.supply import Supply
from rayburst.fleet.view import NodeState, NodeView

HOLD_S = 300.0
"""How long beyond `idle_timeout` pending work holds an idle host that it fits while no host of the
fleet is on its way. Work that nothing more comes for will not be placed by waiting."""


def needed_hosts(supply: Supply, requests: list[Request], claimed: set[str]) -> set[str]:
    """Hosts that standing requests (floors) need, and idle ones that pending work waits with."""
    return _by_floors(supply, requests, claimed) | _by_pending(supply, requests, claimed)


def _by_floors(supply: Supply, requests: list[Request], claimed: set[str]) -> set[str]:
    """Cheapest markets are kept first."""
    floors = [request for request in requests if request.kind is RequestKind.FLOOR]
    if not floors:
        return set()
    bins = _bins(
        supply,
        [
            node
            for node in supply.node.values()
            if node.state is not NodeState.DRAINING and node.host not in claimed
        ],
    )
    for request in floors:
        place(request, bins)
    return {b.name for b in bins if b.used}


def _by_pending(supply: Supply, requests: list[Request], claimed: set[str]) -> set[str]:
    """Idle hosts that pending work fits: it is not placed since the rest of it has no room yet."""
    timeout_s = supply.view.idle_timeout_s
    limit_s = math.inf if _is_coming(supply) else timeout_s + HOLD_S
    idle = [
        node
        for node in supply.node.values()
        if node.state is NodeState.RUNNING
        and 0 < node.idle_s < limit_s
        and node.host not in claimed
    ]
    if all(node.idle_s < timeout_s for node in idle):
        return set()  # none of them is to go
    bins = _bins(supply, idle)
    tasks = [request for request in requests if request.kind is RequestKind.TASK]
    for request, count in hardest_first(tasks):
        for b in bins:
            if not count:
                break
            count -= b.take_some(request, count)
    return {b.name for b in bins if b.used}


def _is_coming(supply: Supply) -> bool:
    """Whether a host was asked for and has not joined."""
    return any(stock.view.promised or stock.launches for stock in supply.pools.values()) or any(
        node.state is NodeState.LAUNCHING for node in supply.view.nodes
    )


def _bins(supply: Supply, nodes: list[NodeView]) -> list[Bin]:
    pools = supply.pools
    nodes = sorted(nodes, key=lambda n: (pools[n.pool].rank, n.idle_s, n.host))
    return [Bin.of(n.host, n.total, n.available, pools[n.pool].view.labels) for n in nodes]
