"""A month of jobs: how long they queue, what bursts, and how many own machines pay. Pure.

    jobs = read_jobs(Path("month.csv"))              # columns: name, at_h, work_h, nodes, within_h
    plan = plan_capacity(jobs, own_usd_per_hour=1.2, burst_usd_per_hour=3.06, most=8)
    print(plan); plan.best.own_nodes

Jobs take own nodes in the order in which they come. One that would end too late (`within_h` after
it came) if it waited bursts at once, whole; one without `within_h` waits. Own nodes cost every hour
of the month, worked or not; burst nodes the hours they work. Jobs run without pauses: for spot give
the price of a useful hour (the price over the share of paid hours that are work).
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from rayburst.errors import PriceError
from rayburst.report import numbers
from rayburst.report.tables import Table

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, kw_only=True, slots=True)
class JobToCome:
    """One job: when it comes (hours from the start), its work, its nodes, its time allowed."""

    name: str
    at_h: float
    work_h: float
    nodes: int = 1
    within_h: float | None = None

    def __post_init__(self) -> None:
        if self.at_h < 0 or self.work_h <= 0 or self.nodes < 1:
            raise PriceError(
                f"job {self.name}: at_h {self.at_h}, work_h {self.work_h}, nodes {self.nodes}: it "
                "comes at 0 or later, works more than 0 hours, on a node at least"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Capacity:
    """The month with so many own nodes.

    Attributes:
        waits_h: of every job that ran on own nodes, in their order.
        burst_node_hours: paid at the burst price.
        utilisation: share of own node-hours that worked; None without own nodes.
    """

    own_nodes: int
    usd: float
    own_usd: float
    burst_usd: float
    burst_node_hours: float
    burst_jobs: int
    late_jobs: int
    waits_h: Sequence[float]
    utilisation: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class CapacityPlan:
    """Every number of own nodes that was tried, fewest first."""

    tried: Sequence[Capacity]
    hours: float

    @property
    def best(self) -> Capacity:
        """The cheapest with the fewest late jobs."""
        return min(self.tried, key=lambda c: (c.late_jobs, c.usd, c.own_nodes))

    def table(self) -> Table:
        rows = [
            (
                str(c.own_nodes),
                "" if c.utilisation is None else f"{c.utilisation:.0%}",
                numbers.usd(c.own_usd),
                f"{c.burst_node_hours:,.0f}",
                numbers.usd(c.burst_usd),
                numbers.usd(c.usd),
                numbers.seconds(3600 * median(c.waits_h)) if c.waits_h else "",
                numbers.seconds(3600 * max(c.waits_h)) if c.waits_h else "",
                str(c.late_jobs),
            )
            for c in self.tried
        ]
        columns = (
            *("own nodes", "worked", "own USD", "burst node-hours", "burst USD", "USD"),
            *("median wait", "longest", "late"),
        )
        note = f"{self.hours:,.0f} hours; cheapest: {self.best.own_nodes} own nodes"
        return Table("capacity", columns, rows, note)

    def __str__(self) -> str:
        return str(self.table())

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it: the month with each number of own nodes, and which is the best."""
        tried = [asdict(one) for one in self.tried]
        return {"hours": self.hours, "best": self.best.own_nodes, "tried": tried}

    def frame(self) -> pandas.DataFrame:
        """One row a number of own nodes; of the waits the median and the longest, in hours."""
        import pandas

        rows = [
            {
                **{key: value for key, value in asdict(one).items() if key != "waits_h"},
                "median_wait_h": median(one.waits_h) if one.waits_h else None,
                "longest_wait_h": max(one.waits_h, default=None),
            }
            for one in self.tried
        ]
        return pandas.DataFrame(rows).set_index("own_nodes")

    def html(self) -> str:
        """The plan as one page: what the month costs by how many nodes are owned."""
        from rayburst.report.capacity_page import capacity_page

        return capacity_page(self)

    def _repr_html_(self) -> str:
        """In a notebook: the page in a frame of its own, so that no style leaks."""
        return f'<iframe srcdoc="{escape(self.html())}" width="100%" height="620"></iframe>'


def plan_capacity(
    jobs: Sequence[JobToCome],
    *,
    own_usd_per_hour: float,
    burst_usd_per_hour: float,
    most: int,
    hours: float = 730.0,
) -> CapacityPlan:
    """Try every number of own nodes from 0 to `most` over the same jobs."""
    if not jobs:
        raise PriceError("no jobs to plan for")
    lasts = max(hours, *(job.at_h + job.work_h for job in jobs))
    tried = [
        _month(jobs, own, own_usd_per_hour, burst_usd_per_hour, lasts) for own in range(most + 1)
    ]
    return CapacityPlan(tried=tried, hours=lasts)


def read_jobs(path: Path) -> list[JobToCome]:
    """Jobs from a CSV; `nodes` and `within_h` may be left out. Raises PriceError with the line."""
    try:
        rows = list(csv.DictReader(path.read_text(encoding="utf-8-sig").splitlines()))
    except OSError as error:
        raise PriceError(f"{path} cannot be read: {error}") from error
    jobs = []
    for line, row in enumerate(rows, start=2):
        try:
            jobs.append(
                JobToCome(
                    name=row.get("name") or f"line {line}",
                    at_h=float(row["at_h"]),
                    work_h=float(row["work_h"]),
                    nodes=int(row.get("nodes") or 1),
                    within_h=float(row["within_h"]) if row.get("within_h") else None,
                )
            )
        except (KeyError, ValueError, TypeError) as error:
            raise PriceError(
                f"{path}, line {line}: {error!r}; columns are name, at_h, work_h, nodes, within_h"
            ) from error
    return jobs


def _month(
    jobs: Sequence[JobToCome], own: int, own_usd: float, burst_usd: float, hours: float
) -> Capacity:
    free = [0.0] * own  # when each own node is free again
    waits: list[float] = []
    burst_h, worked_h, late, bursts = 0.0, 0.0, 0, 0
    for job in sorted(jobs, key=lambda j: (j.at_h, j.name)):
        free.sort()
        starts = max(job.at_h, free[job.nodes - 1]) if job.nodes <= own else None
        latest = None if job.within_h is None else job.at_h + job.within_h - job.work_h
        late += job.within_h is not None and job.work_h > job.within_h
        waits_too_long = latest is not None and starts is not None and starts > latest
        if starts is None or waits_too_long:
            burst_h += job.nodes * job.work_h
            bursts += 1
            continue
        waits.append(starts - job.at_h)
        worked_h += job.nodes * job.work_h
        free[: job.nodes] = [starts + job.work_h] * job.nodes
    return Capacity(
        own_nodes=own,
        usd=own * hours * own_usd + burst_h * burst_usd,
        own_usd=own * hours * own_usd,
        burst_usd=burst_h * burst_usd,
        burst_node_hours=burst_h,
        burst_jobs=bursts,
        late_jobs=late,
        waits_h=waits,
        utilisation=worked_h / (own * hours) if own else None,
    )
