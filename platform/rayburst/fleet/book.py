"""The book of jobs: who they are, what they were granted, what they have cost. Pure: told the time.

    book = Book(past=decision_log.last())
    book.charge(now, prices)                       # USD since the last tick, by job and tenant
    views = book.views(jobs, asks, now)            # for plan_fleet
    new = book.enter(plan, now, prices)            # what is worth an event

A job pays for the hosts of its grant, for those that wait for it and for those it still runs on, by
the second. What it has cost is in the decision log with every grant, so a restarted agent goes on
where the last one was.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from rayburst.errors import SpecError
from rayburst.fleet.decisions import DecisionEvent
from rayburst.fleet.jobs import JobView, Tenant, Terms, read_terms
from rayburst.fleet.spec import TenantSpec
from rayburst.fleet.view import Action, ActionKind, Plan
from rayburst.train.grants import Ask, Grant

STANDING_S = 185.0
"""Ray Train renews a standing request before 180 s have passed; so long one outlives its job."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SubmittedJob:
    """A Ray job that has not ended. `submitted_at` in unix seconds."""

    id: str
    submitted_at: float
    metadata: Mapping[str, str]
    entrypoint: str = ""


@dataclass(slots=True)
class _Account:
    tenant: str = "default"
    grant: Grant | None = None
    ask: Ask | None = None
    spent_usd: float = 0.0
    usd_per_hour: float = 0.0
    at: float = 0.0
    is_open: bool = True
    is_restored: bool = False


@dataclass(slots=True)
class Book:
    """Accounts by submission id. `past` are the decisions of an earlier agent."""

    past: Iterable[DecisionEvent] = ()
    _accounts: dict[str, _Account] = field(default_factory=dict)
    _said: set[tuple[str, str, str]] = field(default_factory=set)
    _terms: dict[str, tuple[Terms, str]] = field(default_factory=dict)
    _ended: list[tuple[float, Ask]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for decision in self.past:
            if decision.kind in ("grant", "end"):
                self._accounts[decision.subject] = _Account(
                    tenant=decision.tenant,
                    grant=Grant(hosts=decision.hosts, pools=decision.pools, why=decision.why),
                    spent_usd=decision.spent_usd,
                    usd_per_hour=decision.usd_per_hour,
                    at=decision.t,
                    is_open=decision.kind == "grant",
                    is_restored=True,
                )
        self.past = ()

    def views(
        self, jobs: Iterable[SubmittedJob], asks: Mapping[str, bytes], now: float
    ) -> list[JobView]:
        """The jobs as the planner wants them; metadata that cannot be read is a `problem`."""
        views = []
        for job in jobs:
            if job.id not in self._terms:
                self._terms[job.id] = _terms(job)
            terms, problem = self._terms[job.id]
            account = self._accounts.setdefault(job.id, _Account(at=now))
            account.tenant, account.is_open = terms.tenant, True
            body = asks.get(job.id)
            account.ask = Ask.from_json(body) if body else None
            views.append(
                JobView(
                    id=job.id,
                    submitted_at=job.submitted_at,
                    terms=terms,
                    ask=account.ask,
                    grant=account.grant,
                    spent_usd=account.spent_usd,
                    problem=problem,
                )
            )
        return views

    def charge(self, now: float, prices: Mapping[str, float | None]) -> None:
        """Count what was paid since the last call; `prices` is USD per hour by living host."""
        for account in self._accounts.values():
            if not account.is_open:
                continue
            rate = _usd_per_hour(account, prices)
            if account.is_restored:  # of hosts that nobody watched only those that still live
                account.usd_per_hour = min(account.usd_per_hour, rate)
                account.is_restored = False
            account.spent_usd += account.usd_per_hour * max(now - account.at, 0.0) / 3600
            account.usd_per_hour, account.at = rate, now

    def tenants(self, named: Iterable[TenantSpec]) -> dict[str, Tenant]:
        """Every tenant with what its jobs have spent, ended ones included."""
        spent: dict[str, float] = {}
        for account in self._accounts.values():
            spent[account.tenant] = spent.get(account.tenant, 0.0) + account.spent_usd
        found = {name: Tenant(spent_usd=usd) for name, usd in spent.items()}
        for tenant in named:
            found[tenant.name] = Tenant(
                share=tenant.share,
                budget_usd=tenant.budget_usd,
                spent_usd=spent.get(tenant.name, 0.0),
            )
        return found

    def enter(
        self, plan: Plan, now: float, prices: Mapping[str, float | None]
    ) -> tuple[DecisionEvent, ...]:
        """Take over the plan's grants; returns what was not said the last time."""
        new = [
            DecisionEvent(t=now, kind=str(a.kind), subject=a.subject, why=a.why, count=a.count)
            for a in plan.actions
            if a.kind is ActionKind.LAUNCH or _same(a) not in self._said
        ]
        self._said = {_same(a) for a in plan.actions}
        for job, grant in plan.grants.items():
            account = self._accounts[job]
            before, account.grant = account.grant, grant
            account.usd_per_hour = _usd_per_hour(account, prices)
            if before is None or (before.hosts, before.pools) != (grant.hosts, grant.pools):
                new.append(self._entry(job, account, now, "grant"))
        return tuple(new)

    def end(self, living: Iterable[str], now: float) -> tuple[DecisionEvent, ...]:
        """Close the accounts of jobs that are no longer among the living."""
        alive = set(living)
        gone = [
            job for job, account in self._accounts.items() if account.is_open and job not in alive
        ]
        return tuple(self._close(job, now) for job in gone)

    def lately_ended(self, now: float) -> list[Ask]:
        """Asks of jobs whose standing requests Ray may still hold, for the trainer was stopped."""
        self._ended = [one for one in self._ended if now - one[0] < STANDING_S]
        return [ask for _, ask in self._ended]

    def _close(self, job: str, now: float) -> DecisionEvent:
        account = self._accounts[job]
        if account.ask is not None:
            self._ended.append((now, account.ask))
        account.grant, account.usd_per_hour, account.is_open = Grant(why="it ended"), 0.0, False
        self._terms.pop(job, None)
        return self._entry(job, account, now, "end")

    def _entry(self, job: str, account: _Account, now: float, kind: str) -> DecisionEvent:
        grant = account.grant or Grant()
        return DecisionEvent(
            t=now,
            kind=kind,
            subject=job,
            why=grant.why,
            tenant=account.tenant,
            hosts=grant.hosts,
            pools=grant.pools,
            usd_per_hour=account.usd_per_hour,
            spent_usd=account.spent_usd,
        )


def _same(action: Action) -> tuple[str, str, str]:
    """What is equal while the same is said again, with other numbers in its reason.

    A move to another place is another one. A launch is never the same: each one is for more hosts.
    """
    where = action.why.partition(":")[0] if action.kind is ActionKind.MOVE else ""
    return (action.kind, action.subject, where)


def _usd_per_hour(account: _Account, prices: Mapping[str, float | None]) -> float:
    hosts = set(account.ask.hosts if account.ask else ())
    if account.grant:
        hosts |= {*account.grant.hosts, *account.grant.coming}
    return sum(prices.get(host) or 0.0 for host in hosts)


def _terms(job: SubmittedJob) -> tuple[Terms, str]:
    try:
        return read_terms(job.metadata, job.submitted_at), ""
    except SpecError as error:
        return Terms(), str(error)
