"""The live policy (`fleet/deadline.py`) on recorded ticks, one call a decision as in a fleet.

A decision at tick n knows the readings up to and including n, as a live fleet does that looks
before it acts; its rates rest on readings before n only. No later reading reaches it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rayburst.fleet.deadline import DeadlinePolicy
from rayburst.fleet.hazards import REFRESH_S, Hazards
from rayburst.fleet.job_state import JobMarketState, Runs, ZoneNow
from rayburst.fleet.market import MarketRecord
from rayburst.fleet.replay.lanes import IDLE, ON_DEMAND, SPOT, Bools, Ints, Lanes

_RUNS = {IDLE: Runs.IDLE, SPOT: Runs.SPOT, ON_DEMAND: Runs.ON_DEMAND}
_CODES = {runs: code for code, runs in _RUNS.items()}


class LivePolicy:
    """A chooser (see `baselines.Chooser`) that asks `DeadlinePolicy` for every lane.

    Required: every tick of the market goes through `observe`, in order, also before the first job.
    Optional: `policy` shares solved tables; without `use_history` the prior is never replaced.
    """

    def __init__(
        self,
        prior: Hazards,
        zones: Sequence[str],
        *,
        use_history: bool = True,
        policy: DeadlinePolicy | None = None,
    ):
        refresh_s = REFRESH_S if use_history else float("inf")
        self._record = MarketRecord(prior=prior, zones=zones, refresh_s=refresh_s)
        self._policy = policy or DeadlinePolicy()
        self._zones = list(zones)
        self._index = {name: i for i, name in enumerate(zones)}

    def observe(self, now_s: float, up: Bools) -> None:
        """One reading of all zones."""
        self._record.observe(now_s, [bool(u) for u in up])

    def __call__(self, lanes: Lanes, rows: Ints, tick: int, up: Bools) -> tuple[Ints, Ints]:
        now = self._record.zones_now(usd_per_hour=[1.0] * len(self._zones))
        together = self._record.together()
        runs, zone = np.empty(len(rows), np.int64), np.full(len(rows), -1)
        time_left = lanes.time_left_s(rows, tick)
        for k, row in enumerate(rows.tolist()):
            state = self._state(lanes, row, float(time_left[k]), now, together)
            decision = self._policy.decide(state)
            runs[k] = _CODES[decision.action]
            if decision.zone is not None:
                zone[k] = self._index[decision.zone]
        return runs, zone

    def _state(
        self,
        lanes: Lanes,
        row: int,
        time_left_s: float,
        now: Sequence[ZoneNow],
        together: Hazards | None,
    ) -> JobMarketState:
        rules, code = lanes.rules, int(lanes.runs[row])
        return JobMarketState(
            work_left_s=float(lanes.left_s[row]),
            time_left_s=time_left_s,
            horizon_s=float(lanes.jobs.allowed_s[row]),
            changeover_s=rules.changeover_s,
            tick_s=rules.tick_s,
            zones=now,
            on_demand_usd_per_hour=rules.price_ratio,
            runs=_RUNS[code],
            owed_s=float(lanes.owed_s[row]),
            zone=self._zones[int(lanes.zone[row])] if code == SPOT else None,
            together=together,
        )
