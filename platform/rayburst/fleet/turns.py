"""Whose turn it is: priority, then the tenant with the smallest weighted share. Pure.

    shares = Shares(totals={"CPU": 64}, tenants=tenants)
    for job in Turns(jobs, shares, holders):
        shares.add(job.terms.tenant, resources, count)      # what it gets moves its tenant back

Weighted dominant resource fairness (Ghodsi et al., "Dominant Resource Fairness", NSDI 2011): a
tenant's share is the largest part that it has of any one resource, over its weight. Each turn goes
to the smallest share. Within a tenant: the nearest deadline, then the earliest submission.

Jobs that hold hosts come before those that hold none, within a priority: a turn takes nothing away.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Collection, Iterable, Iterator, Mapping

from rayburst.fleet.jobs import JobView, Tenant


class Shares:
    """Dominant shares of tenants, growing as a plan gives."""

    def __init__(self, totals: Mapping[str, float], tenants: Mapping[str, Tenant]) -> None:
        self._totals = totals
        self._weights = {name: tenant.share for name, tenant in tenants.items()}
        self._used: dict[str, dict[str, float]] = {}
        self._known: dict[str, float] = {}

    def add(self, tenant: str, resources: Mapping[str, float], count: int) -> None:
        """`count` times `resources` are given to a tenant; a negative count takes back."""
        used = self._used.setdefault(tenant, {})
        for name, amount in resources.items():
            used[name] = used.get(name, 0.0) + amount * count
        self._known.pop(tenant, None)

    def of(self, tenant: str) -> float:
        """The tenant's dominant share over its weight; a tenant not named weighs 1."""
        if tenant not in self._known:
            self._known[tenant] = round(self._share(tenant), 9)
        return self._known[tenant]

    def _share(self, tenant: str) -> float:
        used = self._used.get(tenant, {})
        parts = [
            amount / self._totals[name] for name, amount in used.items() if self._totals.get(name)
        ]
        weight = self._weights.get(tenant, 1.0)
        return max(parts, default=0.0) / weight if weight > 0 else math.inf


class Turns:
    """Jobs by turn; shares may change, and jobs come back, between turns.

    Jobs of one priority are kept by tenant, so that a share that changes moves one entry.
    """

    def __init__(
        self, jobs: Iterable[JobView], shares: Shares, holders: Collection[str] = ()
    ) -> None:
        self._shares = shares
        rounds: dict[tuple[int, bool], dict[str, list[JobView]]] = {}
        for job in sorted(jobs, key=_within_tenant, reverse=True):
            of = (-job.terms.priority, job.id not in holders)
            rounds.setdefault(of, {}).setdefault(job.terms.tenant, []).append(job)
        self._rounds = [rounds[of] for of in sorted(rounds)]
        self._heap: list[tuple[float, str]] = []
        self._last: list[JobView] = []

    def __iter__(self) -> Iterator[JobView]:
        for tenants in self._rounds:
            self._heap = [(self._shares.of(tenant), tenant) for tenant in tenants]
            heapq.heapify(self._heap)
            while self._heap:
                share, tenant = heapq.heappop(self._heap)
                now = self._shares.of(tenant)
                if now > share:
                    heapq.heappush(self._heap, (now, tenant))
                    continue
                job = tenants[tenant].pop()
                self._last = tenants[tenant]
                yield job
                if tenants[tenant]:
                    heapq.heappush(self._heap, (self._shares.of(tenant), tenant))

    def again(self, job: JobView) -> None:
        """Let the job that had the last turn have another, when its tenant is next."""
        self._last.append(job)


def _within_tenant(job: JobView) -> tuple[float, float, str]:
    deadline = math.inf if job.terms.deadline is None else job.terms.deadline
    return (deadline, job.submitted_at, job.id)
