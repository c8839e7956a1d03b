"""From what pools and Ray report to the planner's FleetView and to node events. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from rayburst.fleet._ray_hooks import RayNode, RayNodeStatus, RayView
from rayburst.fleet.events import NodeEvent
from rayburst.fleet.failures import Failures
from rayburst.fleet.outlook import Outlook
from rayburst.fleet.pools.base import ENDED_BY_AUTOSCALER, GIVEN_BACK, UP_TAG, Host
from rayburst.fleet.render import node_labels, node_resources
from rayburst.fleet.spec import FleetSpec, Market, PoolSpec
from rayburst.fleet.spending import Limit
from rayburst.fleet.view import FleetView, NodeState, NodeView, PoolView, SpotRates

DRAINING_TAG = "rayburst-draining-at"
SENT_AWAY = (GIVEN_BACK, ENDED_BY_AUTOSCALER)
FIRST_START_S = 30.0
"""What a host takes to join, until one was seen to."""


def fleet_view(
    spec: FleetSpec,
    hosts: Sequence[Host],
    ray: RayView,
    failures: Mapping[str, Failures],
    now: float,
    *,
    limit: Limit | None = None,
    promised: Mapping[str, int] | None = None,
    outlook: Outlook | None = None,
) -> FleetView:
    """All the planner needs, seen in the same second. `limit` is the fleet's tightest budget."""
    rates = outlook.rates() if outlook else {}
    nodes = {node.host: node for node in ray.nodes if node.status is not RayNodeStatus.DEAD}
    return FleetView(
        now=now,
        idle_timeout_s=spec.limits.idle_timeout_s,
        drain_s=spec.limits.drain_s,
        budget_usd=limit.budget_usd if limit else None,
        spent_usd=limit.spent_usd if limit else 0.0,
        pools=[
            _pool_view(
                pool,
                hosts,
                failures.get(pool.name),
                (promised or {}).get(pool.name, 0),
                rates.get(pool.name),
            )
            for pool in spec.pools
        ],
        together=outlook.together if outlook else None,
        nodes=[
            _node_view(host, nodes.get(host.id), spec.pool(host.pool), now)
            for host in hosts
            if host.lives
        ],
    )


def _pool_view(
    pool: PoolSpec,
    hosts: Sequence[Host],
    failed: Failures | None,
    promised: int,
    rates: SpotRates | None,
) -> PoolView:
    mine = [host for host in hosts if host.pool == pool.name]
    taken = [at for host in mine if (at := lost_at(host)) is not None]
    whys = dict.fromkeys(failed.at, failed.why) if failed else {}
    whys |= {at: why for host in mine if (found := stillborn(host)) for at, why in [found]}
    served = served_at(mine, pool.name)
    times = sorted(at for at in whys if at > served)
    return PoolView(
        name=pool.name,
        market=Market(pool.market),
        resources=node_resources(pool),
        labels=node_labels(pool),
        price_usd_per_hour=pool.price_usd_per_hour,
        min_hosts=pool.min_hosts,
        max_hosts=pool.max_hosts,
        domain=pool.zone or pool.name,
        family=_family(pool),
        start_s=_start_s(mine),
        shortest_paid_s=pool.shortest_paid_s,
        failures=times,
        failed_why=whys[times[-1]] if times else "",
        interrupted_at=max(taken, default=None),
        promised=promised,
        spot=rates,
    )


def _family(pool: PoolSpec) -> str:
    """The instance families that a pool draws from, or its accelerator; "" where none is named."""
    if pool.ec2 is not None:
        return ", ".join(sorted({kind.partition(".")[0] for kind in pool.ec2.types}))
    return pool.shape.accelerator or ""


def stillborn(host: Host) -> tuple[float, str] | None:
    """When and why a host ended that never joined: a failed launch. None for any other."""
    if host.gone_at is None or UP_TAG in host.tags or host.notice:
        return None
    if host.gone_why == ENDED_BY_AUTOSCALER:
        return None
    return host.gone_at, f"{host.id}: {host.gone_why}"


def served_at(hosts: Sequence[Host], pool: str) -> float:
    """When a pool was last asked for a host that joined, of those on record."""
    asked = [host.requested_at for host in hosts if host.pool == pool and UP_TAG in host.tags]
    return max(asked, default=-math.inf)


def lost_at(host: Host) -> float | None:
    """When a market took a host that worked, or gave it notice; None when the fleet sent it away.

    A host that ends without notice and without having been sent away was lost too.
    """
    if host.notice is not None:
        return None if host.notice.planned else host.notice.given_at
    if host.gone_at is None or UP_TAG not in host.tags:
        return None
    return None if host.gone_why.startswith(SENT_AWAY) else host.gone_at


def _start_s(hosts: Sequence[Host]) -> float:
    """From request to joining: the median of what was seen lately."""
    seen = sorted(float(h.tags[UP_TAG]) - h.requested_at for h in hosts if UP_TAG in h.tags)
    return seen[len(seen) // 2] if seen else FIRST_START_S


def _node_view(host: Host, node: RayNode | None, pool: PoolSpec, now: float) -> NodeView:
    resources = node_resources(pool)
    draining_at = host.tags.get(DRAINING_TAG)
    if host.notice or draining_at or (node and node.status is RayNodeStatus.DRAINING):
        state = NodeState.DRAINING
    else:
        state = NodeState.RUNNING if node else NodeState.LAUNCHING
    idle = node is not None and node.status is RayNodeStatus.IDLE
    return NodeView(
        host=host.id,
        pool=host.pool,
        state=state,
        total=node.total if node else resources,
        available=node.available if node else resources,
        idle_s=node.idle_s if node and idle else 0.0,
        draining_since=_since(host, draining_at, now) if state is NodeState.DRAINING else None,
        age_s=max(now - host.requested_at, 0.0),
    )


def _since(host: Host, draining_at: str | None, now: float) -> float:
    if draining_at:
        return float(draining_at)
    return host.notice.given_at if host.notice else now


def new_tags(host: Host, node: RayNode | None, now: float) -> dict[str, str]:
    """Times worth keeping on the host itself, when seen for the first time."""
    tags = {}
    if node is not None and host.lives and UP_TAG not in host.tags:
        tags[UP_TAG] = str(now)
    draining = node is not None and node.status is RayNodeStatus.DRAINING
    if draining and DRAINING_TAG not in host.tags:
        tags[DRAINING_TAG] = str(now)
    return tags


def events_of(host: Host, pool: PoolSpec) -> Iterator[NodeEvent]:
    """The node events that a host's record stands for, in order. Same record, same events."""

    def event(kind: str, t: float, why: str, deadline: float | None = None) -> NodeEvent:
        return NodeEvent(
            t=t,
            kind=kind,  # type: ignore[arg-type]  # one of EventKind by the calls below
            node=host.id,
            pool=host.pool,
            market=pool.market,
            price_usd_per_hour=host.price_usd_per_hour,
            why=why,
            deadline=deadline,
            read_usd_per_gb=pool.traffic.read_usd_per_gb,
            write_usd_per_gb=pool.traffic.write_usd_per_gb,
        )

    yield event("requested", host.requested_at, host.why)
    if up := host.tags.get(UP_TAG):
        yield event("up", float(up), "joined the Ray cluster")
    if host.notice:
        yield event("notice", host.notice.given_at, host.notice.why, host.notice.deadline)
    if draining := host.tags.get(DRAINING_TAG):
        why = host.notice.why if host.notice else "given back"
        yield event("draining", float(draining), why)
    if host.gone_at is not None:
        yield event("gone", host.gone_at, host.gone_why)
