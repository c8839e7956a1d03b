"""Replicas wanted: what comes in times what a request costs, at a load that keeps the promise."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from rayburst.serve.costs import CostCurve
from rayburst.serve.scaling import DEMAND, Demand, replicas_wanted


def curve(fixed_s: float, each_s: float) -> CostCurve:
    made = CostCurve()
    for _ in range(200):
        for n in (1, 2, 4, 8, 16, 32):
            made.learn(n, fixed_s + n * each_s)
    return made


def wanted(by_replica: dict[str, float], *, requests: float = 0.0, current: int = 1) -> float:
    context = SimpleNamespace(
        aggregated_metrics={DEMAND: by_replica},
        total_num_requests=requests,
        current_num_replicas=current,
    )
    return replicas_wanted(context)[0]


def test_a_request_costs_its_part_of_the_largest_batch_that_keeps_the_promise():
    cost = curve(0.008, 0.001)
    # 2 x (8 + 32) ms fits into 100 ms; into 60 ms only 16 do: 2 x (8 + 16)
    assert Demand(slo_s=0.1, max_batch=32, slots=1).work_s(cost) == pytest.approx(0.040 / 32, 0.05)
    assert Demand(slo_s=0.06, max_batch=32, slots=1).work_s(cost) == pytest.approx(0.024 / 16, 0.05)
    assert Demand(slo_s=0.1, max_batch=32, slots=2).work_s(cost) == pytest.approx(0.020 / 32, 0.05)
    # too slow for the promise even alone: one at a time, which is all that it can do
    assert Demand(slo_s=0.001, max_batch=32, slots=1).work_s(cost) == pytest.approx(0.009, 0.05)


def test_demand_is_by_second_and_counts_each_request_once():
    demand, cost = Demand(slo_s=0.1, max_batch=32, slots=1), curve(0.008, 0.001)
    assert demand.rate(0.0) == 0
    for _ in range(1600):
        demand.asked(cost)
    assert demand.rate(2.0) == pytest.approx(800 * 0.040 / 32, 0.05)
    assert demand.rate(3.0) == 0


def test_wanted_is_the_load_of_all_replicas_at_seven_tenths():
    assert wanted({"a": 0.5}) == 1
    assert wanted({"a": 0.7, "b": 0.7}) == 2
    assert wanted({"a": 0.9, "b": 0.9}) == 3
    assert wanted({"a": 3.0}) == 5  # what a replica sheds counts


def test_nobody_asks_nobody_is_wanted_and_calls_by_handle_keep_what_there_is():
    assert wanted({"a": 0.0, "b": 0.0}, current=2) == 0
    assert wanted({}, requests=3, current=2) == 2
    assert wanted({}, requests=3, current=0) == 1
