"""Forecasts hold what then happened on recorded spot markets, nearly as often as they say."""

from __future__ import annotations

from pathlib import Path

import pytest

from rayburst.cost.coverage import check
from rayburst.cost.forecast import JobNeeds, Terms
from rayburst.fleet.hazards import pooled_prior
from rayburst.fleet.recorded import RECORDED
from rayburst.fleet.replay.traces import read_traces

TRACES = Path(__file__).resolve().parents[4] / "shared" / "traces" / "zones-2023-02"
TERMS = Terms(spot_usd_per_hour=0.9731, on_demand_usd_per_hour=3.06)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not TRACES.is_dir(), reason=f"needs the recorded markets in {TRACES}")
def test_intervals_hold_what_happened():
    needs = JobNeeds(work_s=24 * 3600.0, deadline_s=36 * 3600.0, changeover_s=720.0)
    cases = [
        one
        for trace in read_traces(TRACES)
        for one in check(
            trace,
            needs,
            TERMS,
            prior=pooled_prior(RECORDED, without=[trace.name]),
            every_s=36 * 3600.0,
            thin=3,
        )
    ]
    assert len(cases) > 100
    for held in ([c.is_hours_held for c in cases], [c.is_usd_held for c in cases]):
        assert sum(held) / len(held) > 0.8, "90% is stated; neighbours share days"
    late = [c for c in cases if c.option == "mixed" and c.hours > 36 + 1e-6]
    assert not late, "mixed keeps its deadline"
