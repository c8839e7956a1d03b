"""A gang on a count trace: as many nodes as there are, instead of all or nothing. Pure.

    result = elastic_gang(trace, nodes=16, jobs=jobs, rules=rules, prior=prior)

A gang of N nodes on m of them works at m/N of its speed and costs m/N of its price. It shrinks when
nodes are taken and grows again when that repays the changeover, which all its nodes pay. How long
such a part of a gang lasts is measured as time goes on: where it does not outlast its changeover
twice, only the whole gang counts. Below half its size spot counts as down for the deadline policy;
such a rest is used only while the policy would wait anyway. `lanes.Lanes` with
`market(..., nodes=N)` is the all-or-nothing gang.

It knows the count at each tick up to now, and no later one.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from rayburst.fleet.deadline import DeadlinePolicy
from rayburst.fleet.hazards import Hazards, ZoneRecord
from rayburst.fleet.job_state import JobMarketState, Runs, ZoneNow
from rayburst.fleet.replay.lanes import Jobs, Lanes, Rules
from rayburst.fleet.replay.traces import ZoneTrace

USABLE_SHARE = 0.5
"""Share of its nodes from which a gang counts as running; the policy burns slack below it."""

_STEADY_PRIOR_S = 3600.0  # first guess of how long a count stays; one observation's weight
_EPS_S = 1e-6


@dataclass(slots=True)
class _Steady:
    """How long a count of nodes stays the same, on the whole."""

    spent_s: float = _STEADY_PRIOR_S
    changes: float = 1.0

    @property
    def mean_s(self) -> float:
        return self.spent_s / self.changes


@dataclass(slots=True)
class _Gang:
    """One job: what runs, on how many nodes, what is left."""

    left_s: float
    runs: Runs = Runs.IDLE
    size: int = 0
    owed_s: float = 0.0
    starts: int = 0
    cost: float = 0.0
    spot_s: float = 0.0
    on_demand_s: float = 0.0
    end_s: float = float("inf")


@dataclass(slots=True)
class _Run:
    """All jobs of one replay, and what is known of the market so far."""

    name: str
    nodes: int
    rules: Rules
    whole: ZoneRecord
    most: ZoneRecord
    policy: DeadlinePolicy
    whole_lasts: _Steady = field(default_factory=_Steady)
    part_lasts: _Steady = field(default_factory=_Steady)

    @property
    def parts_pay(self) -> bool:
        """Whether a part of the gang lasts long enough to be worth its changeover."""
        return self.part_lasts.mean_s > 2 * self.rules.changeover_s

    @property
    def record(self) -> ZoneRecord:
        """The record of what counts as up: most of the gang where parts pay, else all of it."""
        return self.most if self.parts_pay else self.whole

    def observe(self, now_s: float, count: int, before: int) -> None:
        """Take one reading of the count of nodes; `before` is the one before it."""
        self.whole.observe(now_s, count >= self.nodes)
        self.most.observe(now_s, count >= self.nodes * USABLE_SHARE)
        lasts = self.whole_lasts if before >= self.nodes else self.part_lasts
        if before > 0:
            lasts.spent_s += self.rules.tick_s
            lasts.changes += min(count, self.nodes) != min(before, self.nodes)


def elastic_gang(
    trace: ZoneTrace,
    *,
    nodes: int,
    jobs: Jobs,
    rules: Rules,
    prior: Hazards,
    policy: DeadlinePolicy | None = None,
) -> Lanes:
    """Play every job as an elastic gang; the result reads like that of `play`."""
    run = _Run(
        name=trace.name,
        nodes=nodes,
        rules=rules,
        whole=ZoneRecord(prior),
        most=ZoneRecord(prior),
        policy=policy or DeadlinePolicy(),
    )
    lanes = Lanes(jobs, rules)
    gangs = [_Gang(left_s=rules.work_s) for _ in jobs.start]
    before = 0
    for tick, raw in enumerate(trace.count.tolist()):
        count = max(int(raw), 0)
        run.observe(tick * rules.tick_s, count, before)
        before = count
        for row in lanes.active(tick).tolist():
            passed_s = (tick - int(jobs.start[row])) * rules.tick_s
            _tick(run, gangs[row], min(count, nodes), float(jobs.allowed_s[row]), passed_s)
            lanes.left_s[row] = gangs[row].left_s
    _report(lanes, gangs)
    return lanes


def _tick(run: _Run, gang: _Gang, count: int, allowed_s: float, passed_s: float) -> None:
    _lose(run, gang, count)
    decision = run.policy.decide(_state(run, gang, allowed_s, passed_s))
    action, size = decision.action, run.nodes
    if action is Runs.SPOT:
        size = _grown(run, gang, count)
    elif action is Runs.IDLE and count and run.parts_pay:
        action, size = Runs.SPOT, _grown(run, gang, count)
    _advance(run, gang, action, size, passed_s)


def _lose(run: _Run, gang: _Gang, count: int) -> None:
    """Nodes are taken: the rest starts again with fewer, or nothing is left."""
    if gang.runs is not Runs.SPOT or count >= gang.size:
        return
    if count == 0 or not run.parts_pay:
        gang.runs, gang.size, gang.owed_s = Runs.IDLE, 0, 0.0
        return
    gang.size, gang.owed_s = count, run.rules.changeover_s
    gang.starts += 1


def _state(run: _Run, gang: _Gang, allowed_s: float, passed_s: float) -> JobMarketState:
    """The gang as the deadline policy sees it; a rest below the usable share counts as idle."""
    usable = run.record.up and gang.size >= run.nodes * USABLE_SHARE
    live = gang.runs is Runs.SPOT and usable and not _pressed(run, gang, allowed_s, passed_s)
    runs = Runs.SPOT if live else (Runs.ON_DEMAND if gang.runs is Runs.ON_DEMAND else Runs.IDLE)
    zone = ZoneNow(
        name=run.name,
        up=run.record.up,
        age_s=run.record.age_s,
        usd_per_hour=1.0,
        hazards=run.record.hazards(),
    )
    return JobMarketState(
        work_left_s=gang.left_s,
        time_left_s=allowed_s - passed_s,
        horizon_s=allowed_s,
        changeover_s=run.rules.changeover_s,
        tick_s=run.rules.tick_s,
        zones=(zone,),
        on_demand_usd_per_hour=run.rules.price_ratio,
        runs=runs,
        owed_s=0.0 if runs is Runs.IDLE else gang.owed_s,
        zone=run.name if live else None,
    )


def _pressed(run: _Run, gang: _Gang, allowed_s: float, passed_s: float) -> bool:
    """Whether a shrunken gang has used up what it can lose: it spends slack even while it runs."""
    spare_s = allowed_s - passed_s - gang.left_s - gang.owed_s
    net_s = 2 * run.rules.changeover_s + 2 * run.rules.tick_s
    return gang.size < run.nodes and spare_s < net_s


def _grown(run: _Run, gang: _Gang, count: int) -> int:
    """The size to run at: grow when the nodes gained outweigh one changeover of all of them."""
    if gang.runs is not Runs.SPOT:
        return count
    lasts = run.whole_lasts if count >= run.nodes else run.part_lasts
    gained = (count - gang.size) * lasts.mean_s
    return count if gained > count * run.rules.changeover_s else gang.size


def _advance(run: _Run, gang: _Gang, action: Runs, size: int, passed_s: float) -> None:
    rules = run.rules
    if action is Runs.IDLE:
        gang.runs, gang.size, gang.owed_s = Runs.IDLE, 0, 0.0
        return
    if action is not gang.runs or size != gang.size:
        gang.owed_s = rules.changeover_s
        gang.starts += 1
    gang.runs, gang.size = action, size
    share = size / run.nodes
    paid_s = min(gang.owed_s, rules.tick_s)
    work_s = min((rules.tick_s - paid_s) * share, gang.left_s)
    used_s = paid_s + work_s / share
    gang.left_s -= work_s
    gang.owed_s -= paid_s
    if action is Runs.SPOT:
        gang.spot_s += used_s * share
        gang.cost += used_s * share
    else:
        gang.on_demand_s += used_s
        gang.cost += used_s * rules.price_ratio
    if gang.left_s <= _EPS_S:
        gang.left_s, gang.end_s = 0.0, passed_s + used_s


def _report(lanes: Lanes, gangs: list[_Gang]) -> None:
    for row, gang in enumerate(gangs):
        lanes.cost[row], lanes.end_s[row], lanes.starts[row] = gang.cost, gang.end_s, gang.starts
        lanes.spot_s[row], lanes.on_demand_s[row] = gang.spot_s, gang.on_demand_s
