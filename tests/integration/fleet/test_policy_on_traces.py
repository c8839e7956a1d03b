"""The planner on recorded spot markets. Needs ../shared/traces beside the repository.

A tenth or less of the jobs; `make bench-policy` runs them all.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rayburst.fleet.replay.results import Report
from rayburst.fleet.replay.simulate import Settings, replay, simulate
from rayburst.fleet.replay.traces import read_traces

TRACES = Path(__file__).resolve().parents[4] / "shared" / "traces"

pytestmark = [
    pytest.mark.skipif(
        not TRACES.is_dir(),
        reason=f"no recorded spot traces at {TRACES}; its README says where they come from",
    ),
    pytest.mark.timeout(600),
]

MAIN = ("rayburst", "uniform-progress", "omniscient")


def test_the_baseline_costs_what_others_measured() -> None:
    """Uniform Progress that keeps on-demand, all 1,200 windows, as measured elsewhere."""
    report = simulate(TRACES / "windows", Settings(policies=("uniform-progress",)))
    found = [by["uniform-progress"] for by in report.mean().values()]
    assert found == pytest.approx([0.556, 0.600, 0.658, 0.738], abs=6e-4)


def test_the_optimum_costs_what_others_measured() -> None:
    report = simulate(TRACES / "windows", Settings(policies=("omniscient",), fractions=(0.9,)))
    assert report.mean()["0.9"]["omniscient"] == pytest.approx(0.628, abs=1.1e-3)


@pytest.fixture(scope="module")
def unseen() -> Report:
    """Windows replayed with a prior that never saw them."""
    return simulate(TRACES / "windows", Settings(policies=MAIN, thin=15))


def test_no_deadline_is_missed(unseen: Report) -> None:
    assert unseen.misses() == 0


def test_a_quarter_of_the_excess_goes_and_no_fraction_is_dearer(unseen: Report) -> None:
    for by in unseen.mean().values():
        assert by["rayburst"] < by["uniform-progress"]
    assert np.mean(list(unseen.removed().values())) >= 0.25


def test_no_zone_is_much_dearer_than_uniform_progress(unseen: Report) -> None:
    cost = {(r.zone, r.fraction, r.policy): r.cost_ratio for r in unseen.rows}
    for zone, fraction, policy in cost:
        if policy == "rayburst":
            limit = cost[zone, fraction, "uniform-progress"] + 0.01
            assert cost[zone, fraction, policy] <= limit, (zone, fraction)


def test_four_zones_side_by_side_beat_the_best_one_known_in_advance() -> None:
    traces = read_traces(TRACES / "zones-2023-02")
    one = Settings(policies=("omniscient",), fractions=(0.8,), every_s=6 * 86400.0)
    many = replay(traces, replace(one, policies=MAIN, many_zones=True))
    single = replay(traces, one)
    assert many.misses() == 0
    assert many.removed()["0.8"] >= 0.6
    assert many.mean()["0.8"]["rayburst"] < min(r.cost_ratio for r in single.rows)


@pytest.mark.parametrize(
    ("name", "nodes", "work_s", "changeover_s", "gain"),
    [
        ("bamboo-p3", 32, 18000.0, 720.0, 0.2),
        ("segment_hl_15_25", 32, 1800.0, 180.0, 0.2),
        ("segment_ll_10_11", 18, 1800.0, 180.0, 0.2),
    ],
)
def test_a_gang_on_the_hosts_that_last_does_more_work_for_a_dollar(
    name: str, nodes: int, work_s: float, changeover_s: float, gain: float
) -> None:
    """Where all nodes are seldom there: mean of the fractions, against all of them or nothing."""
    settings = Settings(
        policies=("rayburst", "uniform-progress"),
        fractions=(0.6, 0.7, 0.8),
        nodes=nodes,
        work_s=work_s,
        changeover_s=changeover_s,
        every_s=work_s / 10,
    )
    report = simulate(TRACES / "membership" / f"{name}.csv", settings)
    assert report.misses() == 0
    costs = [[by[p] for p in settings.policies] for by in report.mean().values()]
    ours, theirs = np.mean(costs, axis=0)
    assert theirs / ours - 1 >= gain


def test_a_gang_does_more_work_for_a_dollar() -> None:
    settings = Settings(policies=("rayburst", "uniform-progress"), nodes=16, every_s=12 * 3600.0)
    report = simulate(TRACES / "gang-2023-08", settings)
    assert report.misses() == 0
    costs = [[by[p] for p in settings.policies] for by in report.mean().values()]
    ours, theirs = np.mean(costs, axis=0)
    assert ours < theirs
