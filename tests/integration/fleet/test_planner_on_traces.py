"""The whole planner on recorded spot markets, a plan every 15 s, beside the policy's replay.

Replay asks `DeadlinePolicy` alone. Here `plan_fleet` decides, from pools, hosts and failed
launches, and its plans are carried out by the fleet in memory. Needs ../shared/traces beside the
repository.
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
from rayburst.fleet.replay.live import LivePolicy
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
    """The same jobs by the policy alone, and by Uniform Progress."""
    jobs = Jobs(start=np.array(starts), allowed_s=np.full(len(starts), ALLOWED_S))
    up, known = market([trace])
    ours = LivePolicy(prior_without([]), [trace.name], policy=POLICY)
    theirs = baselines.uniform_progress(keeps_on_demand=True)
    return tuple(play(chosen, up, known, jobs, RULES).cost_ratio for chosen in (ours, theirs))


def test_plans_cost_on_recorded_markets_what_the_policys_replay_says() -> None:
    found = []
    for trace in read_traces(TRACES / "windows"):
        if trace.name in ZONES:
            starts = [span.start for span in trace.windows][20::60]
            policy, uniform = replayed(trace, starts)
            plans = [planned(trace, start) for start in starts]
            found += list(zip(plans, policy, uniform, strict=True))
    plans, policy, uniform = np.mean(found, axis=0)
    assert abs(plans - policy) <= 0.05
    assert plans < uniform < 1
