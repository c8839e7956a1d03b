"""Replays policies over recorded spot markets and says what each cost.

    report = simulate(Path("traces/windows"), Settings(work_s=48 * 3600, fractions=(0.6, 0.9)))
    report.rows[0].cost_ratio, report.mean()

`rayburst` is the planner itself (`fleet/planner.py`), called at every tick for every job, its plans
carried out (`planned.py`). Its prior leaves out every zone of the replayed set (by name), so its
figures are those of unseen zones. `deadline-policy` asks the rule inside it alone
(`fleet/deadline.py`), without pools and hosts: for research on that rule, and for jobs of one node.

A job starts in every window of a cut recording, and every `every_s` of an uncut one. Knows no live
fleet; nothing is printed here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rayburst.errors import DataError, SpecError
from rayburst.fleet.hazards import Hazards, pooled_prior
from rayburst.fleet.recorded import RECORDED
from rayburst.fleet.replay import baselines
from rayburst.fleet.replay.lanes import Bools, Floats, Jobs, Lanes, Rules
from rayburst.fleet.replay.live import LivePolicy
from rayburst.fleet.replay.memberships import read_membership
from rayburst.fleet.replay.omniscient import omniscient
from rayburst.fleet.replay.planned import play_planned
from rayburst.fleet.replay.play import market, play
from rayburst.fleet.replay.results import Report, Row
from rayburst.fleet.replay.traces import Polarity, Span, ZoneTrace, read_traces

POLICIES = (
    "rayburst",
    "uniform-progress",
    "uniform-progress-idle",
    "greedy",
    "on-demand",
    "omniscient",
)
"""What is replayed if nothing else is asked for."""

KNOWN = (*POLICIES, "deadline-policy")

PRICE_RATIO = 3.06 / 0.9731
"""On-demand over spot price of a p3.2xlarge, as in the experiments of "Can't Be Late"."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What to replay. Times in seconds.

    Attributes:
        fractions: work over time allowed; the deadline is `work_s / fraction` after the start.
        many_zones: all zones of the set are one market on one clock, and a job may use any.
        nodes: size of the gang; 1 for single jobs.
        every_s: time between job starts on recordings that are not cut into windows.
        thin: take one job of so many; for quick looks.
    """

    work_s: float = 48 * 3600.0
    fractions: tuple[float, ...] = (0.6, 0.7, 0.8, 0.9)
    changeover_s: float = 720.0
    policies: tuple[str, ...] = POLICIES
    price_ratio: float = PRICE_RATIO
    polarity: Polarity = Polarity.AUTO
    many_zones: bool = False
    nodes: int = 1
    every_s: float = 86400.0
    thin: int = 1

    def __post_init__(self) -> None:
        unknown = [p for p in self.policies if p not in KNOWN]
        if unknown:
            raise SpecError(f"no policy {', '.join(unknown)}; known: {', '.join(KNOWN)}")
        if "deadline-policy" in self.policies and self.nodes > 1:
            raise SpecError(
                f"deadline-policy with {self.nodes} nodes: it knows jobs of one node only; "
                "`rayburst` plans gangs"
            )
        if not self.fractions or not all(0 < f <= 1 for f in self.fractions):
            raise SpecError(f"fractions {self.fractions}: each lies above 0 and up to 1, as 0.8")
        if self.nodes < 1 or self.thin < 1 or self.every_s <= 0:
            raise SpecError(
                f"nodes {self.nodes}, thin {self.thin}, every {self.every_s} s: nodes and thin "
                "start at 1, every above 0"
            )


def simulate(path: Path, settings: Settings) -> Report:
    """Read the traces at `path` (JSON, or CSV of a cluster's membership) and replay them."""
    if path.suffix == ".csv":
        return replay([read_membership(path)], settings)
    return replay(read_traces(path, settings.polarity), settings)


def replay(traces: Sequence[ZoneTrace], settings: Settings) -> Report:
    """Replay every policy on every zone, or on all zones as one market."""
    groups = [list(traces)] if settings.many_zones else [[t] for t in traces]
    prior = prior_without([t.name for t in traces])
    rows: list[Row] = []
    jobs_cost: dict[tuple[str, str], Floats] = {}
    starts_s: dict[str, Floats] = {}
    for group in groups:
        name = "multi:" + ",".join(t.name for t in group) if settings.many_zones else group[0].name
        jobs, rules = _jobs(group, settings)
        first = jobs.start[: len(jobs.start) // len(settings.fractions)]
        starts_s[name] = first.astype(np.float64) * rules.tick_s
        up, known = market(group, settings.nodes)
        for policy in settings.policies:
            if policy == "omniscient":
                cost = omniscient(up, jobs, rules)
                rows += _rows(group, name, settings, policy, cost, None)
            else:
                lanes = _played(policy, group, prior, up, known, jobs, rules, settings)
                cost = lanes.cost_ratio
                rows += _rows(group, name, settings, policy, cost, lanes)
            jobs_cost[name, policy] = cost.reshape(len(settings.fractions), -1)
    return Report(rows=tuple(rows), job_costs=jobs_cost, job_starts_s=starts_s)


def prior_without(names: Sequence[str]) -> Hazards:
    """The shipped prior without the zones named; without the first only if none would be left."""
    if all(c.zone in names for c in RECORDED):
        return pooled_prior(RECORDED, without=names[:1])
    return pooled_prior(RECORDED, without=names)


def _jobs(group: Sequence[ZoneTrace], settings: Settings) -> tuple[Jobs, Rules]:
    """The same starts for every fraction, fractions one after the other."""
    trace = group[0]
    tick_s = trace.tick_s
    allowed_s = [settings.work_s / f for f in settings.fractions]
    longest = int(np.ceil(max(allowed_s) / tick_s - 1e-9))
    step = max(1, round(settings.every_s / tick_s))
    spans = trace.windows or tuple(
        Span(start=s, stop=len(trace.count)) for s in range(0, len(trace.count), step)
    )
    starts = [s.start for s in spans if s.stop - s.start >= longest][:: settings.thin]
    if not starts:
        raise DataError(
            f"{trace.name} is too short: a job of {settings.work_s / 3600:.4g} h at fraction "
            f"{min(settings.fractions)} needs {max(allowed_s) / 3600:.4g} h of trace; give less "
            "--work or larger fractions"
        )
    jobs = Jobs(
        start=np.tile(np.array(starts), len(allowed_s)),
        allowed_s=np.repeat(np.array(allowed_s), len(starts)),
    )
    rules = Rules(
        work_s=settings.work_s,
        changeover_s=settings.changeover_s,
        price_ratio=settings.price_ratio,
        tick_s=tick_s,
    )
    return jobs, rules


def _played(
    policy: str,
    group: Sequence[ZoneTrace],
    prior: Hazards,
    up: Bools,
    known: Bools,
    jobs: Jobs,
    rules: Rules,
    settings: Settings,
) -> Lanes:
    if policy == "rayburst":
        return play_planned(group, nodes=settings.nodes, jobs=jobs, rules=rules, prior=prior)
    if policy == "deadline-policy":
        return play(LivePolicy(prior, [t.name for t in group]), up, known, jobs, rules)
    chooser: baselines.Chooser = {
        "uniform-progress": baselines.uniform_progress(keeps_on_demand=True),
        "uniform-progress-idle": baselines.uniform_progress(keeps_on_demand=False),
        "greedy": baselines.greedy,
        "on-demand": baselines.on_demand,
    }[policy]
    return play(chooser, up, known, jobs, rules)


def _rows(
    group: Sequence[ZoneTrace],
    zone: str,
    settings: Settings,
    policy: str,
    cost: Floats,
    lanes: Lanes | None,
) -> list[Row]:
    """One row a fraction; the yardstick has only a cost."""

    def mean(values: Floats | None) -> list[float | None]:
        if values is None:
            return [None] * len(settings.fractions)
        return [float(v) for v in values.reshape(len(settings.fractions), -1).mean(axis=1)]

    per = cost.reshape(len(settings.fractions), -1)
    missed = np.zeros(len(cost)) if lanes is None else lanes.missed.astype(float)
    starts = mean(None if lanes is None else lanes.starts.astype(float))
    spot = mean(None if lanes is None else lanes.spot_s / 3600.0)
    on_demand = mean(None if lanes is None else lanes.on_demand_s / 3600.0)
    return [
        Row(
            trace_set=group[0].trace_set,
            zone=zone,
            fraction=fraction,
            policy=policy,
            cost_ratio=float(per[i].mean()),
            misses=int(missed.reshape(per.shape)[i].sum()),
            jobs=per.shape[1],
            starts=starts[i],
            spot_h=spot[i],
            on_demand_h=on_demand[i],
        )
        for i, fraction in enumerate(settings.fractions)
    ]
