"""What a job says as metadata, how long its work takes, which size it aims at."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayburst.errors import SpecError
from rayburst.fleet.jobs import (
    JobView,
    MarketPolicy,
    Terms,
    read_terms,
    speed,
    to_metadata,
    wanted_workers,
    work_left_s,
)
from rayburst.train.grants import Ask

ASK = Ask(t=0, run="r", least=1, most=4, resources={"CPU": 1}, steps_left=100, speeds={2: 2.0})


def test_terms_are_read_from_text():
    given_ = {
        "deadline": "6h",
        "budget": "5 USD",
        "tenant": "blue",
        "priority": "-1",
        "floor": "2",
        "span": "any",
        "market": "spot",
        "team": "somebody else's key",
    }
    assert read_terms(given_, submitted_at=1000.0) == Terms(
        deadline=1000.0 + 6 * 3600,
        budget_usd=5.0,
        tenant="blue",
        priority=-1,
        floor=2,
        span_any=True,
        market=MarketPolicy.SPOT,
    )
    assert read_terms({}, submitted_at=0) == Terms()


def test_a_deadline_is_a_duration_or_a_time_with_its_zone():
    at = datetime(2026, 1, 31, 17, tzinfo=UTC).timestamp()
    for text in ("2026-01-31T18:00+01:00", "2026-01-31T17:00Z", str(at)):
        assert read_terms({"deadline": text}, submitted_at=0).deadline == at


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("deadline", "soon", "a time is one number with s, m, h or d"),
        ("deadline", "60", "2026-01-31T18:00"),
        ("deadline", "2026-01-31T18:00", "names no time zone"),
        ("budget", "5", "number with USD"),
        ("priority", "high", "whole number"),
        ("floor", "-1", "whole number"),
        ("span", "region", "zone, any"),
        ("market", "cheap", "auto, on-prem, spot, on-demand"),
    ],
)
def test_a_term_that_cannot_be_read_says_what_is_allowed(key, value, says):
    with pytest.raises(SpecError, match=key) as error:
        read_terms({key: value}, submitted_at=0)
    assert says in str(error.value)


def test_what_is_given_in_python_becomes_metadata_that_reads_the_same():
    at = datetime(2026, 1, 31, 18, tzinfo=UTC)
    written = to_metadata({"deadline": "1h", "budget": "1 USD", "priority": 2}, now=at.timestamp())
    assert written["deadline"] == "2026-01-31T19:00:00+00:00", "it no longer counts from now"
    assert read_terms(written, submitted_at=0).deadline == at.timestamp() + 3600
    assert to_metadata({"deadline": at}, now=0)["deadline"] == at.isoformat()
    with pytest.raises(SpecError, match="no term dedline"):
        to_metadata({"dedline": "1h"}, now=0)  # type: ignore[typeddict-unknown-key]


def test_speed_lies_on_a_line_between_sizes_and_in_proportion_beyond():
    assert speed(replace(ASK, speeds={}), 2) is None
    assert speed(ASK, 1) == 1.0
    assert speed(ASK, 4) == 4.0
    both = replace(ASK, speeds={2: 2.0, 4: 3.0})
    assert speed(both, 3) == 2.5
    assert work_left_s(both, 4) == pytest.approx(100 / 3)
    assert work_left_s(replace(ASK, steps_left=None), 2) is None
    assert work_left_s(replace(ASK, speeds={2: 0.0}), 2) == math.inf


def job(ask: Ask, deadline: float | None = None) -> JobView:
    return JobView(id="j", submitted_at=0, terms=Terms(deadline=deadline), ask=ask)


def test_the_most_workers_are_wanted_unless_fewer_do_it_for_clearly_less():
    assert wanted_workers(job(replace(ASK, speeds={})), now=0) == 4
    assert wanted_workers(job(ASK), now=0) == 4
    flat = replace(ASK, speeds={1: 1.0, 4: 1.2})
    assert wanted_workers(job(flat), now=0) == 1
    assert wanted_workers(job(flat, deadline=1000), now=0) == 1
    assert wanted_workers(job(flat, deadline=130), now=0) == 4, "one worker leaves no slack"
    assert wanted_workers(job(flat, deadline=10), now=0) == 4, "the fastest, when all are late"


@given(
    st.dictionaries(st.integers(1, 8), st.floats(0.1, 10), max_size=4),
    st.integers(1, 4),
    st.integers(0, 4),
    st.none() | st.floats(1, 1e4),
)
def test_the_size_aimed_at_is_one_the_job_can_have(speeds, least, more, deadline):
    ask = replace(ASK, least=least, most=least + more, speeds=speeds)
    assert least <= wanted_workers(job(ask, deadline), now=0) <= least + more
