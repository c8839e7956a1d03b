"""Opening hours: when the machines of somebody else may be used. Pure.

    hours = OpeningHours.parse(["mon-fri 20:00-08:00", "sat-sun"], timezone="Europe/Berlin")
    hours.closes_at(now)        # unix seconds; None when they never close; now when they are closed

A span may go over midnight; it belongs to the day it begins on. Times are the wall clock's of the
time zone, so a night in which clocks change is an hour longer or shorter.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from rayburst.errors import SpecError

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_SPAN = re.compile(
    rf"(?P<first>{'|'.join(_DAYS)})(?:-(?P<last>{'|'.join(_DAYS)}))?"
    r"(?: (?P<from>[0-2]\d:[0-5]\d)-(?P<to>[0-2]\d:[0-5]\d))?"
)
_MIDNIGHT = "00:00"


@dataclass(frozen=True, kw_only=True, slots=True)
class OpeningHours:
    """`spans`: (day of the week from Monday, minute it opens, minute it closes, up to 2,880)."""

    spans: Sequence[tuple[int, int, int]]
    timezone: ZoneInfo

    @classmethod
    def parse(cls, texts: Sequence[str], *, timezone: str = "UTC") -> OpeningHours:
        """Read spans such as "mon-fri 20:00-08:00" or "sat"; none at all is always open.

        Raises:
            SpecError: a text is no span, or there is no such time zone.
        """
        try:
            zone = ZoneInfo(timezone)
        except (ZoneInfoNotFoundError, ValueError):
            raise SpecError(
                f"timezone {timezone!r}: no such zone here; a name such as Europe/Berlin or UTC"
            ) from None
        return cls(spans=[span for text in texts for span in _spans(text)], timezone=zone)

    def is_open(self, t: float) -> bool:
        """Whether the hours hold at a time in unix seconds."""
        return not self.spans or any(start <= t < end for start, end in self._around(t))

    def closes_at(self, t: float) -> float | None:
        """When they end, unix seconds; `t` itself while closed; None when they never do."""
        if not self.spans:
            return None
        end = t
        for start, stop in sorted(self._around(t)):
            if start <= end < stop:
                end = stop
        return None if end - t > _WEEK_S else end

    def opens_at(self, t: float) -> float:
        """The next time at which they hold; `t` itself while open."""
        if self.is_open(t):
            return t
        return min(start for start, _ in self._around(t) if start > t)

    def _around(self, t: float) -> Iterator[tuple[float, float]]:
        """Spans from the day before to nine days after, as unix seconds."""
        now = datetime.fromtimestamp(t, tz=self.timezone)
        for ahead in range(-1, 10):
            day = (now + timedelta(days=ahead)).date()
            for weekday, opens, closes in self.spans:
                if day.weekday() == weekday:
                    yield self._at(day, opens), self._at(day, closes)

    def _at(self, day: object, minute: int) -> float:
        midnight = datetime.fromisoformat(f"{day}T00:00")
        wall = midnight + timedelta(minutes=minute)
        return wall.replace(tzinfo=self.timezone).timestamp()


_WEEK_S = 7 * 86_400


def _spans(text: str) -> Iterator[tuple[int, int, int]]:
    found = _SPAN.fullmatch(text.strip().lower())
    if found is None:
        raise SpecError(
            f"{text!r} is no opening hours; write days, and times of the wall clock where it is "
            f"not the whole day: 'mon-fri 20:00-08:00', 'sat-sun'"
        )
    first = _DAYS.index(found["first"])
    last = _DAYS.index(found["last"] or found["first"])
    opens = _minute(found["from"] or _MIDNIGHT)
    closes = _minute(found["to"] or "24:00")
    if closes <= opens:
        closes += 1440
    for ahead in range((last - first) % 7 + 1):
        yield (first + ahead) % 7, opens, closes


def _minute(text: str) -> int:
    hour, minute = (int(part) for part in text.split(":"))
    if hour * 60 + minute > 1440:
        raise SpecError(f"{text} is no time of a day; the last is 24:00")
    return hour * 60 + minute
