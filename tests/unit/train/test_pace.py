"""The interval that pays, against a simulation; and when a resize repays itself."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayburst.train.pace import (
    PRIOR_S,
    SNAPSHOT_SHARE,
    Stay,
    checkpoint_pace,
    mean_between_s,
    resize_gain_s,
    snapshot_interval_s,
)


def test_it_is_the_root_of_two_c_m() -> None:
    pace = checkpoint_pace(blocked_s=0.5, durable_s=2.0, between_s=3600.0)
    assert pace.interval_s == pytest.approx(60.0)
    assert not pace.is_bound_by_store


def test_a_slow_store_bounds_it() -> None:
    pace = checkpoint_pace(blocked_s=0.5, durable_s=300.0, between_s=3600.0)
    assert pace.interval_s == 300.0
    assert pace.is_bound_by_store


@given(
    blocked_s=st.floats(0.01, 10.0),
    durable_s=st.floats(0.01, 60.0),
    between_s=st.floats(600.0, 1e6),
)
def test_no_other_interval_above_the_stores_loses_less(
    blocked_s: float, durable_s: float, between_s: float
) -> None:
    def lost(interval_s: float) -> float:
        return blocked_s / interval_s + (interval_s / 2 + durable_s) / between_s

    pace = checkpoint_pace(blocked_s=blocked_s, durable_s=durable_s, between_s=between_s)
    for factor in (0.5, 0.8, 1.25, 2.0):
        other_s = max(pace.interval_s * factor, durable_s, 1.0)
        assert lost(pace.interval_s) <= lost(other_s) * (1 + 1e-9)


def test_snapshots_come_one_at_a_time_and_hold_training_up_for_their_share_at_most() -> None:
    assert snapshot_interval_s(blocked_s=0.01, whole_s=2.0) == 2.0
    assert snapshot_interval_s(blocked_s=0.5, whole_s=2.0) == 0.5 / SNAPSHOT_SHARE
    with pytest.raises(ValueError, match=r"whole_s=-1\.0"):
        snapshot_interval_s(blocked_s=0.5, whole_s=-1.0)


def test_what_is_seen_takes_over_from_the_prior() -> None:
    assert mean_between_s({}, workers={"a": 1}) == PRIOR_S
    assert mean_between_s({}, workers={"a": 1, "b": 3}) == PRIOR_S / 4
    seen = {"a": Stay(watched_s=100 * PRIOR_S), "b": Stay(watched_s=3600.0, interruptions=60)}
    calm = mean_between_s(seen, workers={"a": 1})
    rough = mean_between_s(seen, workers={"b": 1})
    assert mean_between_s(seen, workers={"a": 1, "b": 1}) == pytest.approx(
        1 / (1 / calm + 1 / rough)
    )
    assert calm == 101 * PRIOR_S
    assert rough == pytest.approx((PRIOR_S + 3600) / 61)


def test_growth_pays_when_there_is_enough_left_and_it_lasts() -> None:
    words = {"size": 2, "possible": 4, "stop_s": 10.0}
    # an hour left: half an hour at four workers does two thirds of an hour's gain
    assert resize_gain_s(left_s=3600, stay_s=1e6, **words) == pytest.approx(1790)
    assert resize_gain_s(left_s=15, stay_s=1e6, **words) < 0, "hardly anything left"
    assert resize_gain_s(left_s=3600, stay_s=5, **words) < 0, "taken away again at once"
    assert resize_gain_s(size=3, possible=3, left_s=3600, stay_s=1e6, stop_s=10) == 0


@pytest.mark.parametrize("wrong", [{"blocked_s": -1}, {"durable_s": -1}, {"between_s": 0}])
def test_impossible_numbers_are_refused(wrong: dict[str, float]) -> None:
    given_ = {"blocked_s": 1.0, "durable_s": 1.0, "between_s": 1.0, **wrong}
    with pytest.raises(ValueError, match=next(iter(wrong))):
        checkpoint_pace(**given_)
    assert math.isfinite(checkpoint_pace(blocked_s=0, durable_s=0, between_s=1).interval_s)
