"""What the planner is told and what it answers, as data. Pure.

`FleetView` and `Demand` go in, `Plan` comes out (`planner.py`). Times are unix seconds, durations
seconds, money USD.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from rayburst.fleet.hazards import Hazards
from rayburst.fleet.jobs import JobView, Tenant
from rayburst.fleet.packing import Request
from rayburst.fleet.spec import Market
from rayburst.train.grants import Ask, Grant

TICK_S = 15.0
"""The longest time from a change in a fleet to a decision that knows of it: a dead node's 5 s, the
agent's second, the trainer's ask, a busy machine."""


class NodeState(StrEnum):
    """A node's life as the planner sees it."""

    LAUNCHING = "launching"
    RUNNING = "running"
    DRAINING = "draining"


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeView:
    """One host that was asked for and is not gone.

    Attributes:
        available: resources free now; for a launching node all it will have.
        idle_s: how long nothing ran on it; 0 when busy or launching.
        draining_since: when its drain was first seen; None unless draining.
        age_s: since it was requested; it is paid for from then on.
    """

    host: str
    pool: str
    state: NodeState
    total: Mapping[str, float]
    available: Mapping[str, float]
    idle_s: float = 0.0
    draining_since: float | None = None
    age_s: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class SpotRates:
    """What is known of a spot pool's market: up or down, for how long, and its rates.

    Attributes:
        lasts_s: by number of hosts (the first is for one), how long the pool is likely to go on to
            have at least so many; empty where that was not counted.
    """

    up: bool
    age_s: float
    hazards: Hazards
    other_up: float = 0.0
    lasts_s: Sequence[float] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolView:
    """One pool: what it offers, at what price, and how it behaved lately.

    Attributes:
        domain: a gang stays on pools of one domain (a zone, a rack).
        family: the kind of its machines, as `m6i` or `H100`; "" is unknown. Spot hosts of one
            family are often taken together, as those of one domain are.
        start_s: from a host's request to its joining, as seen lately.
        shortest_paid_s: the least time that a host is paid for.
        failures: when launches failed (unix seconds), since it last launched a host that joined;
            `failed_why` is of the last one.
        promised: nodes granted a moment ago that are not on record as hosts yet. They are on their
            way through the autoscaler: taking a grant back then would end them half started.
        spot: None for other markets, and for a spot pool of which nothing is known.
    """

    name: str
    market: Market
    resources: Mapping[str, float]
    labels: Mapping[str, str]
    price_usd_per_hour: float | None
    min_hosts: int
    max_hosts: int
    domain: str = ""
    family: str = ""
    start_s: float = 30.0
    shortest_paid_s: float = 0.0
    failures: Sequence[float] = ()
    failed_why: str = ""
    interrupted_at: float | None = None
    promised: int = 0
    spot: SpotRates | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class FleetView:
    """All that the planner may know about supply, at the time `now`.

    Attributes:
        drain_s: how long a node that is sent away may still work.
        budget_usd: the fleet's tightest budget, for ever or for this month; None is no limit.
        spent_usd: what of it was spent up to `now`.
        together: rates of "any spot pool is up"; None where none are known.
        tick_s: longest time from a change to a decision that knows of it.
    """

    now: float
    idle_timeout_s: float
    tick_s: float = TICK_S
    drain_s: float = 30.0
    budget_usd: float | None = None
    spent_usd: float = 0.0
    pools: Sequence[PoolView]
    nodes: Sequence[NodeView]
    together: Hazards | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Demand:
    """What Ray reports as pending or standing, and the jobs that say what they need.

    A job with an ask is planned by its ask; its trainer's standing requests are taken out of
    `requests` first; so are those of jobs that `ended` a moment ago, which outlive them in Ray.
    """

    requests: Sequence[Request] = ()
    jobs: Sequence[JobView] = ()
    ended: Sequence[Ask] = ()
    tenants: Mapping[str, Tenant] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Caps:
    """What the autoscaler may have of one node type; `more` of it are not hosts yet."""

    min: int
    max: int
    more: int = 0


class ActionKind(StrEnum):
    """What a plan can say beside caps."""

    LAUNCH = "launch"
    """A pool may launch `count` nodes."""
    HOLD = "hold"
    """A job keeps what it has."""
    MOVE = "move"
    """A job's new hosts are being made ready; the old ones go when they are."""
    DRAIN = "drain"
    """A working host gets notice."""
    RELEASE = "release"
    """An idle host is given back."""
    QUEUE = "queue"
    """A job waits."""
    UNMET = "unmet"
    """`count` requests that no pool can serve now."""
    LATE = "late"
    """A job's deadline can no longer be met."""
    SHORT = "short"
    """A job's money does not reach for what its deadline needs."""
    BUDGET = "budget"
    """Most of a budget is spent: a job's, a tenant's or the fleet's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Action:
    """One decision about a pool, a host or a job, with its reason in words and numbers."""

    kind: ActionKind
    subject: str
    count: int = 1
    why: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Caps for every pool, grants for every planned job, and the decisions that led to them."""

    caps: Mapping[str, Caps]
    grants: Mapping[str, Grant] = field(default_factory=dict)
    actions: Sequence[Action] = field(default_factory=tuple)
