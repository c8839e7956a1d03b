"""Where jobs and the planner meet: asks are read, grants and decisions are published.

    desk = Desk(gcs, log, spec, balance)
    demand = desk.demand(ray, prices, now)
    limit = desk.limit(now)                 # the fleet's own budget
    desk.publish(plan, prices, now)
    desk.lines(now)                         # for `rayburst queue`

Acts on Ray's key-value store and on the decision log; what it knows of jobs is in `book.py`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

from rayburst.cost.balance import Balance
from rayburst.cost.spent import Spent
from rayburst.errors import StoreError
from rayburst.fleet._ray_hooks import Gcs, RayView
from rayburst.fleet.book import Book
from rayburst.fleet.decisions import DecisionBatch, DecisionEvent, DecisionLog
from rayburst.fleet.jobs import JobView
from rayburst.fleet.lines import JobLine, job_line
from rayburst.fleet.planner import claimed_hosts
from rayburst.fleet.spec import FleetSpec
from rayburst.fleet.spending import Limit, Spending, tightest, warnings
from rayburst.fleet.view import ActionKind, Demand, Plan
from rayburst.train.grants import PLANNER_KEY, Grant, ask_key, grant_key

_LOG = logging.getLogger("rayburst.agent")
_WARNINGS = (ActionKind.LATE, ActionKind.SHORT, ActionKind.MOVE, ActionKind.BUDGET)


class Desk:
    """One fleet's jobs. Grants of before are in the decision log, what was spent in the ledger."""

    def __init__(self, gcs: Gcs, log: DecisionLog, spec: FleetSpec, balance: Balance) -> None:
        self._gcs, self._log, self._spec, self._balance = gcs, log, spec, balance
        self._book: Book | None = None
        self._views: Sequence[JobView] = ()
        self._plan: Plan | None = None
        self._published: dict[str, Grant] = {}
        self._claimed: bytes | None = None

    def demand(self, ray: RayView, prices: Mapping[str, float | None], now: float) -> Demand:
        """What Ray and the jobs ask for at `now`.

        Raises:
            StoreError: nobody knows what was spent before, and a budget must be kept.
            ray.exceptions.RpcError: Ray's head does not answer.
        """
        book = self._opened(now)
        jobs = self._gcs.jobs()
        book.charge(now, prices)
        if (told := self._balance.told()) is not None:
            book.spending.rebase(told)
        ended = book.end((job.id for job in jobs), now)
        for entry in ended:
            self._gcs.delete(grant_key(entry.subject))
            self._gcs.delete(ask_key(entry.subject))
        self._write(ended, now)
        found = self._gcs.read(ask_key(job.id) for job in jobs)
        asks = {job.id: body for job in jobs if (body := found.get(ask_key(job.id)))}
        self._views = book.views(jobs, asks)
        tenants = book.tenants(self._spec.tenants, now)
        return Demand(
            requests=ray.requests,
            jobs=self._views,
            ended=book.lately_ended(now),
            tenants=tenants,
        )

    def limit(self, now: float) -> Limit | None:
        """The tighter of the fleet's budgets, once `demand` has been called."""
        return tightest(self._opened(now).fleet_limits(self._spec.limits, now))

    def publish(self, plan: Plan, prices: Mapping[str, float | None], now: float) -> None:
        """Give the jobs their grants and write down what is new. Writing it twice is once."""
        book = self._opened(now)
        found = [*book.fleet_limits(self._spec.limits, now), *book.limits(self._spec.tenants, now)]
        plan = self._plan = replace(plan, actions=(*plan.actions, *warnings(found)))
        for job, grant in plan.grants.items():
            if self._published.get(job) != grant:
                self._gcs.write(grant_key(job), grant.to_json())
        self._published = dict(plan.grants)
        claimed = json.dumps(claimed_hosts(plan.grants)).encode()
        if claimed != self._claimed:
            self._gcs.write(PLANNER_KEY, claimed)
            self._claimed = claimed
        new = book.enter(plan, now, prices)
        for entry in new:
            _LOG.info("%s %s x%d: %s", entry.kind, entry.subject, entry.count, entry.why)
        self._write(new, now)

    def flush(self) -> None:
        """Send decisions that wait on disk."""
        self._log.flush()

    def lines(self) -> list[dict[str, object]]:
        """Every job as `rayburst queue` shows it, in the order in which the planner served them."""
        grants = self._plan.grants if self._plan else {}
        turn = {job: number for number, job in enumerate(grants)}
        said: dict[str, list[str]] = {}
        for action in self._plan.actions if self._plan else ():
            if action.kind in _WARNINGS:
                said.setdefault(action.subject, []).append(action.why)
        found: list[JobLine] = [
            job_line(view, grants.get(view.id), said.get(view.id, []))
            for view in sorted(self._views, key=lambda view: turn.get(view.id, len(turn)))
        ]
        return [asdict(line) for line in found]

    def _opened(self, now: float) -> Book:
        if self._book is None:
            try:
                spending = Spending(self._balance.read(now))
                self._book = Book(past=self._log.last(), spending=spending)
            except StoreError:
                if _has_budgets(self._spec):
                    raise
                _LOG.warning("the ledger cannot be read: jobs start with nothing spent")
                self._book = Book(spending=Spending(Spent(at=now)))
        return self._book

    def _write(self, new: Sequence[DecisionEvent], now: float) -> None:
        if new:
            self._log.append(DecisionBatch(t=now, decisions=tuple(new)))


def _has_budgets(spec: FleetSpec) -> bool:
    kept = [(spec.limits.budget_usd, spec.limits.monthly_budget_usd)]
    kept += [(tenant.budget_usd, tenant.monthly_budget_usd) for tenant in spec.tenants]
    return any(usd is not None for both in kept for usd in both)
