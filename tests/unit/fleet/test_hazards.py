"""Rates by age: counted from readings, pooled, and taken over by a zone's own past."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayburst.errors import DataError
from rayburst.fleet.hazards import AGE_EDGES_S, BINS, Hazards, ZoneRecord, age_bin, pooled_prior
from rayburst.fleet.market import MarketRecord
from rayburst.fleet.recorded import RECORDED

FLAT = Hazards(up=(1e-4,) * BINS, down=(1e-4,) * BINS)


def read(record: ZoneRecord, ups: list[bool], tick_s: float = 600.0) -> None:
    for tick, up in enumerate(ups):
        record.observe(tick * tick_s, up)


def test_an_age_falls_into_the_bin_whose_edge_it_reached() -> None:
    assert [age_bin(edge) for edge in AGE_EDGES_S] == list(range(BINS))
    assert age_bin(599.0) == 0 and age_bin(1e9) == BINS - 1


def test_the_age_of_a_run_starts_anew_with_every_change() -> None:
    record = ZoneRecord(FLAT)
    read(record, [True, True, True, False, False])
    assert not record.up and record.age_s == 600.0


def test_a_gap_in_the_readings_starts_a_new_run() -> None:
    record = ZoneRecord(FLAT, gap_s=3600.0)
    record.observe(0.0, True)
    record.observe(7200.0, True)
    assert record.age_s == 0.0


def test_counts_are_pairs_of_readings_and_ends_by_age() -> None:
    record = ZoneRecord(FLAT)
    read(record, [True, True, False, True])
    counts = record.counts("z")
    assert counts.tick_s == 600.0
    assert counts.readings[1][:2] == (1.0, 1.0) and counts.ends[1][:2] == (0.0, 1.0)
    assert counts.readings[0][0] == 1.0 and counts.ends[0][0] == 1.0


def test_a_zone_that_never_fails_is_trusted_more_as_its_past_grows() -> None:
    means = []
    for hours in (0, 24, 240):
        record = ZoneRecord(FLAT, refresh_s=3600.0)
        read(record, [True] * (6 * hours + 1))
        means.append(record.hazards().expected_up_s(record.age_s))
    assert means[0] < means[1] < means[2]


def test_rates_rest_on_earlier_readings_only() -> None:
    one, other = ZoneRecord(FLAT, refresh_s=600.0), ZoneRecord(FLAT, refresh_s=600.0)
    read(one, [True] * 50)
    read(other, [True] * 49 + [False])
    assert one.hazards() == other.hazards()


def test_expected_time_up_of_a_constant_rate_is_its_inverse() -> None:
    for age_s in (0.0, 650.0, 1e6):
        assert FLAT.expected_up_s(age_s) == pytest.approx(1e4)


def test_a_prior_leaves_out_the_zones_named() -> None:
    names = [c.zone for c in RECORDED]
    assert pooled_prior(RECORDED, without=names[:4]) == pooled_prior(RECORDED[4:])
    with pytest.raises(DataError, match="no recorded zone is left"):
        pooled_prior(RECORDED, without=names)


@given(st.lists(st.booleans(), min_size=2, max_size=200))
def test_rates_stay_positive_and_finite_whatever_was_read(ups: list[bool]) -> None:
    record = ZoneRecord(pooled_prior(RECORDED), refresh_s=600.0)
    read(record, ups)
    rates = (*record.hazards().up, *record.hazards().down)
    assert all(0.0 < rate < 0.1 for rate in rates)


def test_a_market_counts_how_often_another_zone_covers_a_loss() -> None:
    record = MarketRecord(prior=FLAT, zones=["a", "b"], refresh_s=600.0)
    for tick in range(60):
        record.observe(tick * 600.0, [tick % 2 == 0, True])
    a, b = record.zones_now([1.0, 1.0])
    assert a.other_up > 0.8 and b.other_up == 0.5
    assert record.together() is not None


def test_a_market_refuses_readings_that_do_not_fit() -> None:
    with pytest.raises(DataError, match="each once"):
        MarketRecord(prior=FLAT, zones=["a", "a"])
    with pytest.raises(DataError, match="one a zone"):
        MarketRecord(prior=FLAT, zones=["a"]).observe(0.0, [True, False])
