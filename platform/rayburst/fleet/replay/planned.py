"""`planner.py` itself on recorded ticks: every job a fleet of its own, its plans carried out. Pure.

    lanes = play_planned(traces, nodes=1, jobs=jobs, rules=rules, prior=prior)

A zone is a spot pool and an on-demand pool in one domain. At every tick the fleet looks at its
pools, as a live one does by launching: hosts above the reading are taken; a zone with fewer hosts
than the job wants is closed by a failed launch, and what it has lies there free. Then `plan_fleet`
is called and its plan carried out, and again until it asks for nothing more: hosts come at once,
because the changeover of these experiments is all that a start costs. The job trains on the hosts
of its grant; other hosts than before are a start. Free hosts that no plan takes cost nothing.

While a job trains on spot for all its workers in one zone, and no host is taken, no plan is made
unless `every_tick` says so: the planner keeps live spot whatever the time, and a test holds both to
the same.

A plan at tick n knows the readings up to n; the rates in it rest on readings before n.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from rayburst.fleet.deadline import DeadlinePolicy
from rayburst.fleet.hazards import Hazards
from rayburst.fleet.jobs import JobView, Terms
from rayburst.fleet.outlook import Outlook
from rayburst.fleet.planner import plan_fleet
from rayburst.fleet.replay.lanes import Ints, Jobs, Lanes, Rules
from rayburst.fleet.replay.traces import UNKNOWN, ZoneTrace
from rayburst.fleet.spec import Market
from rayburst.fleet.view import (
    Action,
    ActionKind,
    Demand,
    FleetView,
    NodeState,
    NodeView,
    Plan,
    PoolView,
)
from rayburst.train.grants import Ask, Grant

STEPS_PER_S = 1000
"""Steps that one worker does in a second: work is handed over in whole steps."""

ROUNDS = 6
"""Plans of one tick at most: ask, move, and again where less was there than was asked for."""

_CPU = {"CPU": 1.0}
_EPS_S = 1e-6


def play_planned(
    traces: Sequence[ZoneTrace],
    *,
    nodes: int,
    jobs: Jobs,
    rules: Rules,
    prior: Hazards,
    policy: DeadlinePolicy | None = None,
    every_tick: bool = False,
) -> Lanes:
    """Play every job to its end by the planner's plans.

    Args:
        traces: zones on one clock; a job may use any of them, one at a time.
        nodes: workers of a job. It does with fewer, at that share of its speed and price.
        every_tick: plan also where nothing changed that the planner looks at.
    """
    lanes = Lanes(jobs, rules)
    zones = [t.name for t in traces]
    replay = Replay(
        zones, nodes=nodes, rules=rules, prior=prior, policy=policy, every_tick=every_tick
    )
    count = np.stack([t.count for t in traces], axis=1)
    known = (count != UNKNOWN).all(axis=1)
    fleets = [
        Fleet(replay, start_s=float(start) * rules.tick_s, allowed_s=float(allowed_s))
        for start, allowed_s in zip(jobs.start, jobs.allowed_s, strict=True)
    ]
    for tick in range(len(count)):
        replay.read(tick * rules.tick_s, count[tick], known=bool(known[tick]))
        for row in lanes.active(tick).tolist():
            fleets[row].tick()
            lanes.left_s[row] = fleets[row].left_s
    for row, fleet in enumerate(fleets):
        fleet.report(lanes, row)
    return lanes


class Replay:
    """The market of one replay: what all its jobs see alike."""

    def __init__(
        self,
        zones: Sequence[str],
        *,
        nodes: int,
        rules: Rules,
        prior: Hazards,
        policy: DeadlinePolicy | None = None,
        every_tick: bool = False,
    ) -> None:
        self.zones, self.nodes, self.rules = list(zones), nodes, rules
        self.policy = policy or DeadlinePolicy()
        self.outlook = Outlook(zones, prior=prior)
        self.every_tick = every_tick
        self.now_s = 0.0
        self.hosts: dict[str, int] = {}
        """Zone -> hosts that it has now."""
        self.short: list[str] = []
        """Zones that have some, but fewer than a job wants."""
        self.pools: tuple[PoolView, ...] = ()
        self._paid = tuple(_on_demand(zone, nodes, rules) for zone in zones)

    def read(self, now_s: float, count: Ints, *, known: bool = True) -> None:
        """Take the reading of a tick. An unknown one has no hosts, and nothing is learnt of it."""
        self.now_s = now_s
        counts = [min(max(int(n), 0), self.nodes) for n in count]
        self.hosts = dict(zip(self.zones, counts, strict=True))
        self.short = [zone for zone, hosts in self.hosts.items() if 0 < hosts < self.nodes]
        if known:
            short = {zone for zone, hosts in self.hosts.items() if hosts < self.nodes}
            self.outlook.observe(now_s, short, self.hosts)
        rates = self.outlook.rates()
        spot = tuple(
            PoolView(
                name=zone,
                market=Market.SPOT,
                resources=_CPU,
                labels={},
                price_usd_per_hour=1.0,
                min_hosts=0,
                max_hosts=self.nodes,
                domain=zone,
                start_s=0.0,
                failures=() if hosts == self.nodes else (now_s,),
                failed_why="no more hosts are there" if hosts else "no host is there",
                spot=rates.get(zone),
            )
            for zone, hosts in self.hosts.items()
        )
        self.pools = (*spot, *self._paid)


def _on_demand(zone: str, nodes: int, rules: Rules) -> PoolView:
    return PoolView(
        name=f"{zone} on-demand",
        market=Market.ON_DEMAND,
        resources=_CPU,
        labels={},
        price_usd_per_hour=rules.price_ratio,
        min_hosts=0,
        max_hosts=nodes,
        domain=zone,
        start_s=0.0,
    )


def _node(name: str, pool: str) -> NodeView:
    return NodeView(host=name, pool=pool, state=NodeState.RUNNING, total=_CPU, available=_CPU)


@dataclass(slots=True)
class Fleet:
    """One job and the hosts that were launched for it."""

    replay: Replay
    start_s: float
    allowed_s: float
    left_s: float = field(init=False)
    """Work left, in seconds of all workers."""
    hosts: dict[str, NodeView] = field(default_factory=dict)
    runs: tuple[str, ...] = ()
    """The hosts that it trains on."""
    started_s: float = 0.0
    owed_s: float = 0.0
    grant: Grant | None = None
    starts: int = 0
    cost: float = 0.0
    spot_s: float = 0.0
    on_demand_s: float = 0.0
    end_s: float = float("inf")
    free: dict[str, NodeView] = field(default_factory=dict)
    """Hosts that are there to be taken."""
    plans: list[Plan] = field(default_factory=list)
    """Those of the present tick."""
    _count: int = 0
    _terms: Terms = field(init=False)

    def __post_init__(self) -> None:
        self.left_s = self.replay.rules.work_s
        until_s = self.start_s + self.allowed_s
        self._terms = Terms(deadline=until_s if math.isfinite(until_s) else None)

    def tick(self) -> None:
        """Lose what the market takes, plan, and train until the next reading."""
        self._lose()
        self.plans = []
        if self._is_whole() and not self.replay.every_tick:
            self._train()
            return
        while len(self.plans) < ROUNDS:
            plan = plan_fleet(self._view(), self._demand(), policy=self.replay.policy)
            self.plans.append(plan)
            if not self._carry_out(plan):
                break
        self._start()
        self._train()

    def report(self, lanes: Lanes, row: int) -> None:
        """Note how the job fared as one of the lanes."""
        lanes.cost[row], lanes.end_s[row], lanes.starts[row] = self.cost, self.end_s, self.starts
        lanes.spot_s[row], lanes.on_demand_s[row] = self.spot_s, self.on_demand_s

    def actions(self) -> list[Action]:
        """All that the plans of this tick said."""
        return [action for plan in self.plans for action in plan.actions]

    def _lose(self) -> None:
        if not self.hosts:
            return
        there = dict(self.replay.hosts)
        for name, host in list(self.hosts.items()):
            if host.pool not in there:
                continue
            there[host.pool] -= 1
            if there[host.pool] < 0:
                del self.hosts[name]
        if any(host not in self.hosts for host in self.runs):
            self.runs = ()

    def _is_whole(self) -> bool:
        """Whether it trains on spot for all its workers in one zone."""
        if len(self.runs) < self.replay.nodes or len(self.hosts) > len(self.runs):
            return False
        pools = {self.hosts[host].pool for host in self.runs}
        return len(pools) == 1 and pools <= self.replay.hosts.keys()

    def _view(self) -> FleetView:
        replay = self.replay
        return FleetView(
            now=replay.now_s,
            idle_timeout_s=60.0,
            tick_s=replay.rules.tick_s,
            pools=replay.pools,
            nodes=(*self.hosts.values(), *self._free()),
            together=replay.outlook.together,
        )

    def _free(self) -> list[NodeView]:
        """Hosts that a zone without enough of them has beside those of the job."""
        replay, self.free = self.replay, {}
        for zone in replay.short:
            mine = sum(host.pool == zone for host in self.hosts.values())
            for number in range(replay.hosts[zone] - mine):
                node = _node(f"{zone}-{self._count + number}", zone)
                self.free[node.host] = node
        return list(self.free.values())

    def _demand(self) -> Demand:
        rules, nodes = self.replay.rules, self.replay.nodes
        speed = STEPS_PER_S * nodes
        ask = Ask(
            t=self.replay.now_s,
            run="job",
            least=1,
            most=nodes,
            resources=_CPU,
            hosts=self.runs,
            started_at=self.started_s,
            steps_left=max(round(self.left_s * speed), 1),
            speeds={nodes: speed},
            changeover_s=rules.changeover_s,
        )
        job = JobView(
            id="job", submitted_at=self.start_s, terms=self._terms, ask=ask, grant=self.grant
        )
        return Demand(jobs=(job,))

    def _carry_out(self, plan: Plan) -> bool:
        """Launch what the plan launches, end what the grant no longer names; whether to plan
        again."""
        self.grant = grant = plan.grants["job"]
        named = {*grant.hosts, *grant.coming}
        if taken := [name for name in self.free if name in named]:
            self.hosts |= {name: self.free[name] for name in taken}
            self._count += len(self.free)
        if len(named) < len(self.hosts):
            self.hosts = {name: host for name, host in self.hosts.items() if name in named}
        launched = False
        for action in plan.actions:
            if action.kind is ActionKind.LAUNCH:
                self._launch(action.subject, action.count)
                launched = True
        return launched

    def _launch(self, pool: str, count: int) -> None:
        for _ in range(count):
            name = f"{pool}-{self._count}"
            self._count += 1
            self.hosts[name] = _node(name, pool)

    def _start(self) -> None:
        """The job goes on where its grant says; on other hosts than before it starts again."""
        granted = tuple(self.grant.hosts) if self.grant else ()
        if set(granted) != set(self.runs):
            self.runs = granted
            if granted:
                self.starts += 1
                self.started_s, self.owed_s = self.replay.now_s, self.replay.rules.changeover_s

    def _train(self) -> None:
        rules, nodes = self.replay.rules, self.replay.nodes
        if not self.runs:
            return
        share = len(self.runs) / nodes
        spot = sum(self.hosts[host].pool in self.replay.hosts for host in self.runs) / nodes
        paid_s = min(self.owed_s, rules.tick_s)
        work_s = min((rules.tick_s - paid_s) * share, self.left_s)
        used_s = paid_s + work_s / share
        self.left_s -= work_s
        self.owed_s -= paid_s
        self.spot_s += used_s * spot
        self.on_demand_s += used_s * (share - spot)
        self.cost += used_s * (spot + (share - spot) * rules.price_ratio)
        if self.left_s <= _EPS_S:
            self.left_s = 0.0
            self.end_s = self.replay.now_s - self.start_s + used_s
