"""Opening hours over midnight, weekends and a change of clocks."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayburst.errors import SpecError
from rayburst.fleet.hours import OpeningHours

NIGHTS = ["mon-fri 20:00-08:00", "sat-sun"]


def at(text: str, zone: str = "UTC") -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()


@pytest.mark.parametrize(
    ("now", "is_open", "changes"),
    [
        ("2026-11-23T07:59", False, "2026-11-23T20:00"),  # Monday: Sunday ended at midnight
        ("2026-11-23T20:00", True, "2026-11-24T08:00"),
        ("2026-11-24T08:00", False, "2026-11-24T20:00"),
        ("2026-11-27T21:00", True, "2026-11-30T00:00"),  # Friday night runs into the weekend
        ("2026-11-29T12:00", True, "2026-11-30T00:00"),
    ],
)
def test_nights_and_weekends(now: str, is_open: bool, changes: str) -> None:
    hours = OpeningHours.parse(NIGHTS)
    assert hours.is_open(at(now)) is is_open
    found = hours.closes_at(at(now)) if is_open else hours.opens_at(at(now))
    assert found == at(changes)


def test_the_wall_clock_of_its_zone_counts_also_when_clocks_change() -> None:
    hours = OpeningHours.parse(["sat 22:00-06:00"], timezone="Europe/Berlin")
    opens, closes = at("2026-10-24T22:00", "Europe/Berlin"), at("2026-10-25T06:00", "Europe/Berlin")
    assert closes - opens == 9 * 3600, "the night in which summer time ends"
    assert hours.opens_at(opens - 60) == opens
    assert hours.closes_at(opens) == closes


def test_without_hours_it_is_always_open() -> None:
    assert OpeningHours.parse([]).is_open(0.0)
    assert OpeningHours.parse([]).closes_at(0.0) is None
    assert OpeningHours.parse(["mon-sun"]).closes_at(at("2026-11-23T07:59")) is None


@given(st.integers(0, 10**6).map(lambda minutes: at("2026-01-01T00:00") + 60 * minutes))
def test_what_is_said_of_the_future_is_so(now: float) -> None:
    hours = OpeningHours.parse(["tue 09:30-17:00", "thu 23:00-01:00"], timezone="America/New_York")
    if hours.is_open(now):
        closes = hours.closes_at(now)
        assert closes is not None and now < closes <= now + 8 * 3600
        assert hours.is_open(closes - 1) and not hours.is_open(closes)
    else:
        opens = hours.opens_at(now)
        assert now < opens <= now + 8 * 86_400
        assert hours.is_open(opens) and not hours.is_open(opens - 1)


@pytest.mark.parametrize(
    "text", ["", "nights", "mon 20:00", "mon-fri 20:00-25:00", "mon 24:30-25:00"]
)
def test_what_is_no_span_is_refused_with_one_that_is(text: str) -> None:
    with pytest.raises(SpecError, match=r"mon-fri 20:00-08:00|last is 24:00"):
        OpeningHours.parse([text])
