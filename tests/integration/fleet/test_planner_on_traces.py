"""The planner on recorded spot markets with a plan every 15 s, beside its replay.

Replay plans at every reading, ten minutes apart, and its hosts come at once. Here hosts take a
minute, launches fail before a pool is known to be down, and a plan is made every 15 s, as in a live
fleet. Needs ../shared/traces beside the repository.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fleet_world import World, WorldJob, pool

from rayburst.fleet.deadline import DeadlinePolicy
from rayburst.fleet.jobs import Terms
from rayburst.fleet.outlook import Outlook
from rayburst.fleet.replay import baselines
from rayburst.fleet.replay.lanes import Jobs, Rules
from rayburst.fleet.replay.planned import play_planned
from rayburst.fleet.replay.play import market, play
from rayburst.fleet.replay.simulate import prior_without
from rayburst.fleet.replay.traces import ZoneTrace, read_traces
from rayburst.fleet.spec import Market
from rayburst.fleet.view import ActionKind

TRACES = Path(__file__).resolve().parents[4] / "shared" / "traces"
ZONES = ("us-west-2a_v100_1", "us-west-2b_k80_8")
POLICY = DeadlinePolicy()
RULES = Rules(work_s=8 * 3600.0, changeover_s=720.0, price_ratio=3.1446, tick_s=600.0)
ALLOWED_S = RULES.work_s / 0.8
START_S = 60.0

pytestmark = [
    pytest.mark.skipif(
        not TRACES.is_dir(),
        reason=f"no recorded spot traces at {TRACES}; its README says where they come from",
    ),
    pytest.mark.timeout(300),
]


def planned(trace: ZoneTrace, start: int) -> float:
    """Cost over all-on-demand of one job that starts at a tick, by plans of the whole planner."""
    tick_s, now = trace.tick_s, start * trace.tick_s
    outlook = Outlook(["spot"])
    for tick in range(start):
        outlook.observe(tick * tick_s, set() if trace.count[tick] > 0 else {"spot"})
    job = WorldJob(
        "a",
        steps=RULES.work_s,
        changeover_s=RULES.changeover_s - START_S,
        submitted_at=now,
        terms=Terms(deadline=now + ALLOWED_S),
    )
    world = World(
        [
            pool("spot", Market.SPOT, 1.0, domain="z"),
            pool("cloud", Market.ON_DEMAND, RULES.price_ratio, domain="z"),
        ],
        {"a": job},
        tick_s=15.0,
        start_s=START_S,
        now=now,
        policy=POLICY,
        outlook=outlook,
        dry=lambda name, at: name == "spot" and trace.count[int(at // tick_s)] < 1,
    )
    while job.ended_at is None:
        world.step()
    assert job.ended_at <= now + ALLOWED_S, "the deadline"
    assert not world.actions(ActionKind.LATE)
    return job.spent_usd * 3600 / (RULES.work_s * RULES.price_ratio)


def replayed(trace: ZoneTrace, starts: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """The same jobs in replay, by the planner and by Uniform Progress."""
    jobs = Jobs(start=np.array(starts), allowed_s=np.full(len(starts), ALLOWED_S))
    up, known = market([trace])
    ours = play_planned(
        [trace], nodes=1, jobs=jobs, rules=RULES, prior=prior_without([]), policy=POLICY
    )
    theirs = baselines.uniform_progress(keeps_on_demand=True)
    return ours.cost_ratio, play(theirs, up, known, jobs, RULES).cost_ratio


def test_plans_every_15_s_cost_on_recorded_markets_what_replay_says() -> None:
    found = []
    for trace in read_traces(TRACES / "windows"):
        if trace.name in ZONES:
            starts = [span.start for span in trace.windows][20::60]
            replay, uniform = replayed(trace, starts)
            plans = [planned(trace, start) for start in starts]
            found += list(zip(plans, replay, uniform, strict=True))
    plans, replay, uniform = np.mean(found, axis=0)
    assert abs(plans - replay) <= 0.05
    assert plans < uniform < 1
