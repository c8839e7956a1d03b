"""The book of jobs: who they are, what they were granted, what they have cost. Pure: told the time.

    book = Book(past=decision_log.last(), spending=Spending(ledger_says))
    book.charge(now, prices)                       # USD since the last tick, by job and tenant
    views = book.views(jobs, asks)                 # for plan_fleet
    new = book.enter(plan, now, prices)            # what is worth an event

A job pays for the hosts of its grant, for those that wait for it and for those it still runs on, by
the second; two jobs on one host halve it. Which hosts those are is in the decision log, and the
ledger makes its lines from there (`cost/granted.py`): what was spent is the ledger's word, and the
book only counts on from it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from rayburst.cost.spent import FLEET, Spent, job_key, tenant_key
from rayburst.errors import SpecError
from rayburst.fleet.decisions import DecisionEvent
from rayburst.fleet.jobs import JobView, Tenant, Terms, read_terms
from rayburst.fleet.spec import Limits, TenantSpec
from rayburst.fleet.spending import Limit, Spending, limits, tightest
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
    budget_usd: float | None = None
    grant: Grant | None = None
    ask: Ask | None = None
    pays: tuple[str, ...] = ()
    """As it was last written down."""
    is_open: bool = True

    def hosts(self, living: Mapping[str, float | None]) -> tuple[str, ...]:
        """The living hosts that it pays for."""
        found = set(self.ask.hosts if self.ask else ())
        if self.grant:
            found |= {*self.grant.hosts, *self.grant.coming}
        return tuple(sorted(host for host in found if host in living))


@dataclass(slots=True)
class Book:
    """Accounts by submission id. `past` are the decisions of an earlier agent."""

    past: Iterable[DecisionEvent] = ()
    spending: Spending = field(default_factory=lambda: Spending(Spent(at=0.0)))
    _accounts: dict[str, _Account] = field(default_factory=dict)
    _said: set[tuple[str, str, str]] = field(default_factory=set)
    _terms: dict[str, tuple[Terms, str]] = field(default_factory=dict)
    _ended: list[tuple[float, Ask]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for decision in self.past:
            if decision.kind in ("grant", "pays", "end"):
                self._accounts[decision.subject] = _Account(
                    tenant=decision.tenant,
                    grant=Grant(hosts=decision.hosts, pools=decision.pools, why=decision.why),
                    pays=decision.pays,
                    is_open=decision.kind != "end",
                )
        self.past = ()

    def views(self, jobs: Iterable[SubmittedJob], asks: Mapping[str, bytes]) -> list[JobView]:
        """The jobs as the planner wants them; metadata that cannot be read is a `problem`."""
        views = []
        for job in jobs:
            if job.id not in self._terms:
                self._terms[job.id] = _terms(job)
            terms, problem = self._terms[job.id]
            account = self._accounts.setdefault(job.id, _Account())
            account.tenant, account.is_open = terms.tenant, True
            account.budget_usd = terms.budget_usd
            body = asks.get(job.id)
            account.ask = Ask.from_json(body) if body else None
            views.append(
                JobView(
                    id=job.id,
                    submitted_at=job.submitted_at,
                    terms=terms,
                    ask=account.ask,
                    grant=account.grant,
                    spent_usd=self.spending.usd(job_key(job.id)),
                    problem=problem,
                )
            )
        return views

    def charge(self, now: float, prices: Mapping[str, float | None]) -> None:
        """Count what was paid since the last call; `prices` is USD per hour by living host."""
        rates: dict[str, float] = defaultdict(float)
        rates[FLEET] = sum(price or 0.0 for price in prices.values())
        open_ = {job: a.hosts(prices) for job, a in self._accounts.items() if a.is_open}
        payers = Counter(host for hosts in open_.values() for host in hosts)
        for job, hosts in open_.items():
            rate = sum((prices[host] or 0.0) / payers[host] for host in hosts)
            rates[job_key(job)] = rate
            rates[tenant_key(self._accounts[job].tenant)] += rate
        self.spending.charge(now, rates)

    def tenants(self, named: Iterable[TenantSpec], now: float) -> dict[str, Tenant]:
        """Every tenant with the tighter of its budgets and what is spent of that."""
        found = {account.tenant: Tenant() for account in self._accounts.values()}
        for tenant in named:
            limit = tightest(self._limits(tenant, now))
            found[tenant.name] = Tenant(
                share=tenant.share,
                budget_usd=limit.budget_usd if limit else None,
                spent_usd=limit.spent_usd if limit else 0.0,
            )
        return found

    def fleet_limits(self, given: Limits, now: float) -> list[Limit]:
        """The budgets of the whole fleet."""
        ever, monthly = given.budget_usd, given.monthly_budget_usd
        return list(limits(self.spending, FLEET, ever=ever, monthly=monthly, now=now))

    def limits(self, named: Iterable[TenantSpec], now: float) -> Iterator[Limit]:
        """The budgets of all tenants, and of jobs that have not ended."""
        for tenant in named:
            yield from self._limits(tenant, now)
        for job, account in self._accounts.items():
            if account.is_open and account.budget_usd is not None:
                spent = self.spending.usd(job_key(job))
                yield Limit(subject=job, budget_usd=account.budget_usd, spent_usd=spent)

    def _limits(self, tenant: TenantSpec, now: float) -> Iterator[Limit]:
        key, monthly = tenant_key(tenant.name), tenant.monthly_budget_usd
        return limits(self.spending, key, ever=tenant.budget_usd, monthly=monthly, now=now)

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
            paid, account.pays = account.pays, account.hosts(prices)
            if before is None or (before.hosts, before.pools) != (grant.hosts, grant.pools):
                new.append(self._entry(job, account, now, "grant"))
            elif paid != account.pays:
                new.append(self._entry(job, account, now, "pays"))
        self.charge(now, prices)
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
        account.grant, account.pays, account.is_open = Grant(why="it ended"), (), False
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
            pays=account.pays,
            spent_usd=self.spending.usd(job_key(job)),
        )


def _same(action: Action) -> tuple[str, str, str]:
    """What is equal while the same is said again, with other numbers in its reason.

    A move to another place is another one. A launch is never the same: each one is for more hosts.
    """
    where = action.why.partition(":")[0] if action.kind is ActionKind.MOVE else ""
    return (action.kind, action.subject, where)


def _terms(job: SubmittedJob) -> tuple[Terms, str]:
    try:
        return read_terms(job.metadata, job.submitted_at), ""
    except SpecError as error:
        return Terms(), str(error)
