"""Plays a policy over recorded zones: the tick loop. Pure: the market is an array."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rayburst.errors import DataError
from rayburst.fleet.replay.baselines import Chooser
from rayburst.fleet.replay.lanes import Bools, Jobs, Lanes, Rules
from rayburst.fleet.replay.live import LivePolicy
from rayburst.fleet.replay.traces import UNKNOWN, ZoneTrace


def market(traces: Sequence[ZoneTrace], nodes: int = 1) -> tuple[Bools, Bools]:
    """Readings as (up, known), each of shape [ticks, zones]; zones must share clock and length.

    A zone is up where at least `nodes` nodes could be had.
    """
    lengths = {len(t.count) for t in traces}
    if len({t.tick_s for t in traces}) != 1 or len(lengths) != 1:
        raise DataError(
            f"{', '.join(t.name for t in traces)} were not recorded side by side (different tick "
            "or length); replay them one by one"
        )
    count = np.stack([t.count for t in traces], axis=1)
    return count >= nodes, count != UNKNOWN


def play(policy: Chooser | LivePolicy, up: Bools, known: Bools, jobs: Jobs, rules: Rules) -> Lanes:
    """Run all jobs to their end under one policy.

    Args:
        up, known: readings, shape [ticks, zones]. Unknown readings are not observed.
    """
    lanes = Lanes(jobs, rules)
    for tick in range(len(up)):
        now = up[tick]
        if isinstance(policy, LivePolicy) and known[tick].all():
            policy.observe(tick * rules.tick_s, now)
        rows = lanes.active(tick)
        if not len(rows):
            continue
        lanes.lose(rows, now)
        runs, zone = policy(lanes, rows, tick, now)
        lanes.advance(rows, tick, runs, zone)
    return lanes
