"""The cost curve: what it makes of what it has seen."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayburst.serve.costs import CostCurve, Costs

seconds = st.floats(1e-5, 10)


def learned(pairs):
    curve = CostCurve()
    for n, took_s in pairs:
        curve.learn(n, took_s)
    return curve


def test_a_line_is_found_and_sizes_in_between_are_forecast():
    curve = learned([(n, 0.010 + 0.001 * n) for _ in range(20) for n in (1, 4, 16)])
    for n in (1, 2, 8, 16):
        assert curve.mean(n) == pytest.approx(0.010 + 0.001 * n, rel=0.15)


def test_one_size_alone_is_taken_for_proportional():
    curve = learned([(4, 0.020)] * 3)
    assert curve.mean(8) == pytest.approx(0.040)
    assert curve.mean(4) == pytest.approx(0.020)


def test_a_machine_that_slows_down_is_noticed():
    curve = learned([(n, 0.001 * n) for _ in range(100) for n in (1, 8)])
    for _ in range(100):
        for n in (1, 8):
            curve.learn(n, 0.003 * n)
    assert curve.mean(8) == pytest.approx(0.024, rel=0.1)


def test_one_pause_of_the_machine_does_not_spoil_the_curve():
    curve = learned([(n, 0.002 * n) for _ in range(100) for n in (1, 8)])
    curve.learn(8, 5.0)
    assert curve.mean(8) < 0.032


def test_a_step_in_the_cost_is_followed():
    def took_s(n):
        return 0.004 if n <= 16 else 0.012

    curve = learned([(n, took_s(n)) for _ in range(60) for n in (4, 12, 16, 20, 32)])
    assert curve.mean(16) == pytest.approx(0.004, rel=0.2)
    assert curve.mean(32) == pytest.approx(0.012, rel=0.25)


@given(st.lists(st.tuples(st.integers(1, 64), seconds), min_size=1, max_size=60))
def test_a_forecast_is_never_negative_and_upper_is_never_below_the_mean(pairs):
    curve = learned(pairs)
    for n in (1, 2, 7, 64):
        assert 0 <= curve.mean(n) <= curve.upper(n)


def test_nothing_seen_costs_nothing_and_kinds_are_kept_apart():
    costs = Costs()
    assert costs.of("fp32", 1).mean(5) == 0
    costs.of("fp32", 64).learn(1, 0.5)
    assert costs.of("int8", 64).largest == 0
    assert costs.of("fp32", 64).largest == 1
