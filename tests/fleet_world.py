"""A fleet in memory: plans are carried out, jobs work, markets come and go.

    world = World(pools=[...], jobs=[...])
    world.run(600)                       # seconds, a plan every `tick_s`
    world.plans, world.jobs["a"].ended_at, world.usd

Hosts take `start_s` to join, a drained host goes when its job has left or its drain is over, a job
does `speed` steps a second a worker after its changeover. Every plan is checked on the way: caps
and hosts never above a pool's most, a host with one job, a reason for every action.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from rayburst.fleet.deadline import DeadlinePolicy
from rayburst.fleet.jobs import JobView, Tenant, Terms
from rayburst.fleet.outlook import Outlook
from rayburst.fleet.planner import plan_fleet
from rayburst.fleet.spec import Market
from rayburst.fleet.stock import times
from rayburst.fleet.view import (
    ActionKind,
    Demand,
    FleetView,
    NodeState,
    NodeView,
    Plan,
    PoolView,
)
from rayburst.train.grants import Ask, Grant

CPU = {"CPU": 1.0}


def pool(
    name: str, market: Market, price: float | None, most: int = 2, domain: str = "", **more: object
) -> PoolView:
    return PoolView(
        name=name,
        market=market,
        resources=dict(CPU),
        labels={"rayburst.io/market": str(market), "rayburst.io/pool": name},
        price_usd_per_hour=price,
        min_hosts=0,
        max_hosts=most,
        domain=domain or name,
        **more,
    )


@dataclass
class Host:
    pool: str
    requested_at: float
    up_at: float
    drain_at: float | None = None
    idle_since: float = 0.0


@dataclass
class WorldJob:
    id: str
    steps: float
    terms: Terms = field(default_factory=Terms)
    least: int = 1
    most: int = 1
    speed: float = 1.0
    """Steps a second of one worker; more workers in proportion."""
    changeover_s: float = 10.0
    submitted_at: float = 0.0
    grant: Grant | None = None
    hosts: tuple[str, ...] = ()
    trains_at: float = 0.0
    measured: bool = True
    ended_at: float | None = None
    spent_usd: float = 0.0
    starts: int = 0

    def view(self, now: float) -> JobView:
        speeds = {1: self.speed} if self.measured else {}
        ask = Ask(
            t=now,
            run=self.id,
            least=self.least,
            most=self.most,
            resources=CPU,
            hosts=self.hosts,
            steps_left=round(self.steps) if self.measured else None,
            speeds=speeds,
            changeover_s=self.changeover_s,
        )
        return JobView(
            id=self.id,
            submitted_at=self.submitted_at,
            terms=self.terms,
            ask=ask,
            grant=self.grant,
            spent_usd=self.spent_usd,
        )


@dataclass
class World:
    pools: list[PoolView]
    jobs: dict[str, WorldJob]
    tenants: dict[str, Tenant] = field(default_factory=dict)
    tick_s: float = 5.0
    start_s: float = 20.0
    launch_s: float = 0.0
    """From a plan's launch to the host's record: until then it is promised."""
    drain_s: float = 20.0
    budget_usd: float | None = None
    span_any: bool = False
    dry: Callable[[str, float], bool] = lambda pool, now: False
    """Whether a pool's market has nothing at a time: its hosts are taken, launches fail."""
    room: Callable[[str, float], int] = lambda pool, now: 1_000_000
    """How many hosts of a pool its market leaves at a time: more are taken, launches fail."""
    now: float = 0.0
    usd: float = 0.0
    hosts: dict[str, Host] = field(default_factory=dict)
    plans: list[Plan] = field(default_factory=list)
    log: list[tuple[float, str, str]] = field(default_factory=list)
    failed: dict[str, list[float]] = field(default_factory=dict)
    """Launches that failed since the pool last launched a host that joined."""
    taken: dict[str, float] = field(default_factory=dict)
    outlook: Outlook | None = None
    """What is known of spot; None knows nothing."""
    promised: list[tuple[float, str]] = field(default_factory=list)
    """When a host of a pool will be on record."""
    policy: DeadlinePolicy = field(default_factory=DeadlinePolicy)
    _count: int = 0

    def run(self, seconds: float) -> World:
        end = self.now + seconds
        while self.now < end:
            self.step()
        return self

    def step(self) -> Plan:
        self._market()
        if self.outlook is not None:
            self._look(self.outlook)
        self._deliver()
        plan = plan_fleet(self.view(), self.demand(), policy=self.policy, span_any=self.span_any)
        self._check(plan)
        self.plans.append(plan)
        self._carry_out(plan)
        self._work()
        self.now += self.tick_s
        return plan

    def _look(self, outlook: Outlook) -> None:
        has = {p.name: self._has(p.name) for p in self.pools}
        down = {p.name for p in self.pools if self.dry(p.name, self.now)}
        down |= {name for name, count in has.items() if count >= self.room(name, self.now)}
        outlook.observe(self.now, down, has)

    def _has(self, pool: str) -> int:
        return sum(host.pool == pool for host in self.hosts.values())

    def view(self) -> FleetView:
        rates = self.outlook.rates() if self.outlook else {}
        pools = [
            replace(
                p,
                start_s=self.start_s,
                failures=tuple(self.failed.get(p.name, ())),
                failed_why="no capacity" if self.failed.get(p.name) else "",
                interrupted_at=self.taken.get(p.name),
                spot=rates.get(p.name, p.spot),
                promised=sum(name == p.name for _, name in self.promised),
            )
            for p in self.pools
        ]
        return FleetView(
            now=self.now,
            idle_timeout_s=30.0,
            drain_s=self.drain_s,
            budget_usd=self.budget_usd,
            spent_usd=self.usd,
            pools=pools,
            nodes=[self._node(name, host) for name, host in self.hosts.items()],
            together=self.outlook.together if self.outlook else None,
        )

    def demand(self) -> Demand:
        living = [job for job in self.jobs.values() if job.ended_at is None]
        there = [job.view(self.now) for job in living if job.submitted_at <= self.now]
        return Demand(jobs=there, tenants=self.tenants)

    def actions(self, kind: ActionKind) -> list[str]:
        return [a.subject for plan in self.plans for a in plan.actions if a.kind is kind]

    def queue(self) -> list[str]:
        """The jobs that wait after the last plan."""
        return [a.subject for a in self.plans[-1].actions if a.kind is ActionKind.QUEUE]

    def held(self, job: str) -> list[str]:
        """The pools of the hosts that a job may use now."""
        grant = self.jobs[job].grant
        return sorted(self.hosts[h].pool for h in (grant.hosts if grant else ()) if h in self.hosts)

    def _node(self, name: str, host: Host) -> NodeView:
        busy = any(name in job.hosts for job in self.jobs.values())
        state = NodeState.RUNNING if self.now >= host.up_at else NodeState.LAUNCHING
        if host.drain_at is not None:
            state = NodeState.DRAINING
        return NodeView(
            host=name,
            pool=host.pool,
            state=state,
            total=CPU,
            available={"CPU": 0.0 if busy else 1.0},
            idle_s=0.0 if busy else max(self.now - max(host.up_at, host.idle_since), 0.0),
            draining_since=host.drain_at,
            age_s=self.now - host.requested_at,
        )

    def _market(self) -> None:
        for host in self.hosts.values():
            if self.now >= host.up_at and (failed := self.failed.get(host.pool)):
                self.failed[host.pool] = [at for at in failed if at > host.requested_at]
        for name, host in list(self.hosts.items()):
            if self.dry(host.pool, self.now) or self._has(host.pool) > self.room(
                host.pool, self.now
            ):
                self.taken[host.pool] = self.now
                self._gone(name, "taken")

    def _gone(self, name: str, why: str) -> None:
        del self.hosts[name]
        self.log.append((self.now, why, name))
        for job in self.jobs.values():
            if name in job.hosts:
                job.hosts = ()

    def _check(self, plan: Plan) -> None:
        for p in self.pools:
            living = sum(host.pool == p.name for host in self.hosts.values())
            assert plan.caps[p.name].max <= max(p.max_hosts, living), p.name
        claimed = [h for g in plan.grants.values() for h in (*g.hosts, *g.coming)]
        assert len(claimed) == len(set(claimed)), "a host is granted to one job"
        assert all(action.why for action in plan.actions)

    def _carry_out(self, plan: Plan) -> None:
        for action in plan.actions:
            if action.kind is ActionKind.LAUNCH:
                self._launch(action.subject, action.count)
            elif action.kind is ActionKind.DRAIN and self.hosts[action.subject].drain_at is None:
                self.hosts[action.subject].drain_at = self.now
                self.log.append((self.now, "drain", action.subject))
            elif action.kind is ActionKind.RELEASE:
                self._gone(action.subject, "released")
        for job, grant in plan.grants.items():
            self.jobs[job].grant = grant

    def _launch(self, name: str, count: int) -> None:
        if self.dry(name, self.now):
            self.failed.setdefault(name, []).append(self.now)
            self.log.append((self.now, "failed", name))
            return
        there = self._has(name) + sum(pool == name for _, pool in self.promised)
        if count > (left := max(self.room(name, self.now) - there, 0)):
            self.failed.setdefault(name, []).append(self.now)
            self.log.append((self.now, "failed", name))
            count = left
        self.promised += [(self.now + self.launch_s, name)] * count
        if self.launch_s == 0:
            self._deliver()

    def _deliver(self) -> None:
        due = [name for at, name in self.promised if at <= self.now]
        self.promised = [one for one in self.promised if one[0] > self.now]
        for name in due:
            host = f"{name}-{self._count:04d}"
            self._count += 1
            self.hosts[host] = Host(name, self.now, self.now + self.start_s, idle_since=self.now)
            self.log.append((self.now, "launched", host))

    def _work(self) -> None:
        for name, host in list(self.hosts.items()):
            p = next(p for p in self.pools if p.name == host.pool)
            self.usd += (p.price_usd_per_hour or 0.0) * self.tick_s / 3600
            if host.drain_at is None:
                continue
            is_used = any(name in job.hosts for job in self.jobs.values())
            if not is_used or self.now - host.drain_at >= self.drain_s:
                self._gone(name, "drained")
        for job in self.jobs.values():
            if job.ended_at is None and job.grant is not None:
                self._train(job, job.grant)

    def _train(self, job: WorldJob, grant: Grant) -> None:
        prices = {p.name: p.price_usd_per_hour or 0.0 for p in self.pools}
        for host in {*grant.hosts, *grant.coming, *job.hosts}:
            if host in self.hosts:
                job.spent_usd += prices[self.hosts[host].pool] * self.tick_s / 3600
        usable = tuple(
            h
            for h in grant.hosts
            if h in self.hosts and self.hosts[h].up_at <= self.now and not self.hosts[h].drain_at
        )
        if job.hosts and not (set(job.hosts) <= set(usable) and len(usable) <= len(job.hosts)):
            for host in job.hosts:
                self.hosts[host].idle_since = self.now
            job.hosts = ()
        if not job.hosts and times({"n": len(usable)}, {"n": 1}) >= job.least:
            job.hosts, job.trains_at = usable[: job.most], self.now + job.changeover_s
            job.starts += 1
        if job.hosts and self.now >= job.trains_at:
            job.measured = True
            job.steps -= job.speed * len(job.hosts) * self.tick_s
        if job.steps <= 0:
            job.ended_at = self.now + self.tick_s
            for host in job.hosts:
                self.hosts[host].idle_since = self.now
            job.hosts, job.grant = (), None
