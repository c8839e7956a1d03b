"""Jobs in lines: who runs, who waits and for what. Pure.

print(JobQueue([JobLine(...), ...]))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rayburst.fleet.jobs import JobView
from rayburst.report.tables import Table
from rayburst.train.grants import Grant


@dataclass(frozen=True, kw_only=True, slots=True)
class JobLine:
    """One job that has not ended.

    Attributes:
        state: `runs`, `starts` (its hosts are on their way), `waits`, or `unplanned`: it has not
            said what it needs, so Ray's own requests speak for it.
        workers: where it runs now; `least` and `most` are None for an unplanned job.
        deadline: unix seconds.
    """

    job: str
    state: str
    tenant: str
    priority: int
    workers: int
    least: int | None
    most: int | None
    pools: dict[str, int]
    deadline: float | None
    spent_usd: float
    budget_usd: float | None
    why: str


def job_line(view: JobView, grant: Grant | None, said: Sequence[str]) -> JobLine:
    """One job as it stands; `said` are warnings about it."""
    ask = view.ask
    if ask is None:
        state, why = "unplanned", view.problem or "it has not said what it needs"
    else:
        pools = bool(grant and grant.pools)
        state = "runs" if ask.hosts else ("starts" if pools else "waits")
        why = "; ".join([*said, *([view.problem] if view.problem else [])]) or (
            grant.why if grant else ""
        )
    return JobLine(
        job=view.id,
        state=state,
        tenant=view.terms.tenant,
        priority=view.terms.priority,
        workers=len(ask.hosts) if ask else 0,
        least=ask.least if ask else None,
        most=ask.most if ask else None,
        pools=dict(grant.pools) if grant else {},
        deadline=view.terms.deadline,
        spent_usd=view.spent_usd,
        budget_usd=view.terms.budget_usd,
        why=why,
    )


@dataclass(frozen=True, slots=True)
class JobQueue:
    """All jobs of a fleet that have not ended, in turn; shown are those that run first."""

    jobs: Sequence[JobLine]
    now: float

    def table(self) -> Table:
        order = {"runs": 0, "starts": 1, "waits": 2, "unplanned": 3}
        rows = [
            (
                line.job,
                line.state,
                line.tenant,
                str(line.priority),
                _hosts(line),
                _left(line.deadline, self.now),
                _money(line),
                line.why,
            )
            for line in sorted(self.jobs, key=lambda j: order[j.state])
        ]
        columns = ("job", "state", "tenant", "priority", "hosts", "deadline", "USD", "why")
        note = "" if rows else "no job runs or waits"
        return Table("jobs", columns, rows, note)

    def __str__(self) -> str:
        return str(self.table())

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


def _hosts(line: JobLine) -> str:
    if line.most is None:
        return ""
    pools = ", ".join(f"{count} {pool}" for pool, count in line.pools.items())
    return f"{line.workers} of {line.least} to {line.most}" + (f" ({pools})" if pools else "")


def _left(deadline: float | None, now: float) -> str:
    if deadline is None:
        return ""
    left_s = deadline - now
    sign, left_s = ("in ", left_s) if left_s >= 0 else ("over by ", -left_s)
    if left_s < 120:
        return f"{sign}{left_s:.0f} s"
    return f"{sign}{left_s / 60:.0f} min" if left_s < 7200 else f"{sign}{left_s / 3600:.1f} h"


def _money(line: JobLine) -> str:
    spent = f"{line.spent_usd:.4f}"
    return spent if line.budget_usd is None else f"{spent} of {line.budget_usd:.2f}"
