"""What each job may still spend: its own budget and its tenant's, drains kept back. Pure.

    purse = Purse(supply, tenants, jobs)
    purse.left(job)                         # USD; None is no limit
    purse.affords(job, {"spot-a": 2})       # whether two more hosts can be paid and drained again

A host commits its job to what it costs until a decision reaches it and it has drained, and to the
shortest time that it is paid for; one that drains, to the rest of that. A new one has to be paid
while it starts, too: else the last of a budget buys hosts that leave before they have done a step.
The fleet's own budget is kept by `supply.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rayburst.fleet.jobs import JobView, Tenant
from rayburst.fleet.supply import BUDGET_LAG_S, Supply
from rayburst.fleet.view import NodeState


class Purse:
    """Money left by job and by tenant, going down as a plan gives."""

    def __init__(
        self, supply: Supply, tenants: Mapping[str, Tenant], jobs: Iterable[JobView]
    ) -> None:
        self._supply = supply
        self._jobs: dict[str, float] = {}
        self._tenants = {
            name: tenant.budget_usd - tenant.spent_usd
            for name, tenant in tenants.items()
            if tenant.budget_usd is not None
        }
        for job in jobs:
            if job.terms.budget_usd is not None:
                self._jobs[job.id] = job.terms.budget_usd - job.spent_usd
            if job.id in self._jobs or job.terms.tenant in self._tenants:
                for pool, hosts in supply.holds(job.id).items():
                    self._keep_back(job, self._kept_usd(pool, hosts))
                self._keep_back(job, self._draining_usd(job))

    def left(self, job: JobView) -> float | None:
        """What a job may still spend; None is no limit."""
        known = [
            left
            for left in (self._jobs.get(job.id), self._tenants.get(job.terms.tenant))
            if left is not None
        ]
        return min(known, default=None)

    def affords(self, job: JobView, more: Mapping[str, int]) -> bool:
        """Whether a job can pay so many more hosts of each pool until they work, and their drain.

        A host whose price is unknown can be paid by nobody who has a limit.
        """
        left = self.left(job)
        if left is None:
            return True
        pools = [self._supply.pools[pool].view for pool, count in more.items() if count > 0]
        if any(pool.price_usd_per_hour is None for pool in pools):
            return False
        usd = self._usd(more)
        return usd == 0 or usd < left

    def spend(self, job: JobView, more: Mapping[str, int]) -> None:
        """Note that a job got these hosts."""
        if job.id in self._jobs or job.terms.tenant in self._tenants:
            self._keep_back(job, self._usd(more))

    def _usd(self, more: Mapping[str, int]) -> float:
        drain_s, pools = self._supply.view.drain_s + BUDGET_LAG_S, self._supply.pools
        return sum(
            count
            * pools[pool].price
            * max(pools[pool].view.start_s + drain_s, pools[pool].view.shortest_paid_s)
            / 3600
            for pool, count in more.items()
            if count > 0
        )

    def _kept_usd(self, pool: str, hosts: Iterable[str]) -> float:
        stock, view = self._supply.pools[pool], self._supply.view
        return sum(
            stock.price
            * max(
                view.drain_s + BUDGET_LAG_S,
                stock.view.shortest_paid_s - self._supply.node[host].age_s,
            )
            / 3600
            for host in hosts
        )

    def _draining_usd(self, job: JobView) -> float:
        """What a job will have paid for the hosts that it is about to leave."""
        view, usd = self._supply.view, 0.0
        for host in job.ask.hosts if job.ask else ():
            node = self._supply.node.get(host)
            if node is None or node.state is not NodeState.DRAINING:
                continue
            since = node.draining_since
            gone_s = view.now - since if since is not None else 0.0
            left_s = max(view.drain_s + BUDGET_LAG_S - gone_s, 0.0)
            usd += self._supply.pools[node.pool].price * left_s / 3600
        return usd

    def _keep_back(self, job: JobView, usd: float) -> None:
        if job.id in self._jobs:
            self._jobs[job.id] -= usd
        if job.terms.tenant in self._tenants:
            self._tenants[job.terms.tenant] -= usd
