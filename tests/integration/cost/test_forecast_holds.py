"""Forecasts hold what then happened on recorded spot markets, nearly as often as they say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from scipy.stats import binom

from rayburst.cost.coverage import Check, check
from rayburst.cost.forecast import COVERS, JobNeeds, Span, Terms
from rayburst.fleet.hazards import pooled_prior
from rayburst.fleet.recorded import RECORDED
from rayburst.fleet.replay.traces import read_traces

TRACES = Path(__file__).resolve().parents[4] / "shared" / "traces" / "zones-2023-02"
TERMS = Terms(spot_usd_per_hour=0.9731, on_demand_usd_per_hour=3.06)
CHANCE = 0.01  # that a right forecast is taken for a wrong one, per column
pytestmark = pytest.mark.skipif(
    not TRACES.is_dir(), reason=f"needs the recorded markets in {TRACES}"
)


def checked(needs: JobNeeds, *, every_h: float, thin: int, paths: int = 60) -> list[Check]:
    """Forecast and truth in all zones, each with a prior that never saw it."""
    return [
        one
        for trace in read_traces(TRACES)
        for one in check(
            trace,
            needs,
            TERMS,
            prior=pooled_prior(RECORDED, without=[trace.name]),
            every_s=every_h * 3600.0,
            thin=thin,
            paths=paths,
        )
    ]


def held(cases: Sequence[Check], of: Callable[[Check], bool]) -> tuple[int, int]:
    """How many were held, and how few a forecast that is right would hold once in a hundred."""
    return sum(map(of, cases)), int(binom.ppf(CHANCE, len(cases), COVERS))


def halved(case: Check) -> Check:
    """The same with intervals half as wide about their middle."""
    options = [
        option
        if option.hours is None or option.usd is None
        else replace(option, hours=_half(option.hours), usd=_half(option.usd))
        for option in case.told.options
    ]
    return replace(case, told=replace(case.told, options=options))


def _half(span: Span) -> Span:
    return replace(span, low=(span.low + span.middle) / 2, high=(span.high + span.middle) / 2)


# starts 96 h apart: a job's truth ends (or is given up) before the next forecast of its zone begins
def test_intervals_hold_at_the_stated_rate_and_half_as_wide_ones_do_not():
    needs = JobNeeds(work_s=12 * 3600.0, deadline_s=15.6 * 3600.0, changeover_s=720.0)
    cases = checked(needs, every_h=96.0, thin=12, paths=40)
    for option in ("spot", "mixed"):
        mine = [case for case in cases if case.option == option]
        assert len(mine) == 40
        for of in (lambda c: c.is_hours_held, lambda c: c.is_usd_held):
            many, least = held(mine, of)
            assert many >= least, (option, many, least)
        many, least = held([halved(case) for case in mine], lambda c: c.is_usd_held)
        assert many < least, (option, many, least)
    ended_late = [c for c in cases if c.option == "mixed" and c.hours > 15.6 + 1e-6]
    assert not ended_late, "mixed keeps its deadline"


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_intervals_hold_what_happened():
    needs = JobNeeds(work_s=24 * 3600.0, deadline_s=36 * 3600.0, changeover_s=720.0)
    cases = checked(needs, every_h=36.0, thin=3)
    assert len(cases) > 100
    for of in ([c.is_hours_held for c in cases], [c.is_usd_held for c in cases]):
        assert sum(of) / len(of) > 0.8, "90% is stated; neighbours share days"
    late = [c for c in cases if c.option == "mixed" and c.hours > 36 + 1e-6]
    assert not late, "mixed keeps its deadline"
