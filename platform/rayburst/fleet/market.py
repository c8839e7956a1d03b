"""What was read of several spot zones side by side, and the rates that follow. Pure: no clock.

    record = MarketRecord(prior=prior, zones=["us-east-1c", "us-east-1f"])
    record.observe(now_s=0.0, up=[True, False])
    zones = record.zones_now(usd_per_hour=[0.97, 0.97])     # for JobMarketState.zones

Beside each zone's own runs it keeps two things that single zones cannot tell: how long "no zone is
up" lasts, and how often another zone is up when one is lost.
"""

from __future__ import annotations

from collections.abc import Sequence

from rayburst.errors import DataError
from rayburst.fleet.hazards import REFRESH_S, Hazards, ZoneRecord
from rayburst.fleet.job_state import ZoneNow

_LOSSES = 4.0  # losses that weigh as much as the first guess, an even chance
_SHARES = 10  # chances are rounded to tenths, so that tables are shared


class MarketRecord:
    """Readings of all zones of one market, taken together.

    Required: `observe` with times that only grow and one value a zone.
    """

    def __init__(self, *, prior: Hazards, zones: Sequence[str], refresh_s: float = REFRESH_S):
        if len(set(zones)) != len(zones) or not zones:
            raise DataError(f"zones {list(zones)}: give at least one zone, each once")
        self._names = list(zones)
        self._zones = [ZoneRecord(prior, refresh_s=refresh_s) for _ in zones]
        self._any = ZoneRecord(prior, refresh_s=refresh_s)
        self._lost = [0.0] * len(zones)
        self._covered = [0.0] * len(zones)
        self._refresh_s = refresh_s
        self._renewed_s: float | None = None
        self._other_up = [0.5 if len(zones) > 1 else 0.0] * len(zones)

    def observe(self, now_s: float, up: Sequence[bool]) -> None:
        """Take one reading of every zone, in the order of the names."""
        if len(up) != len(self._names):
            raise DataError(f"{len(up)} readings for {len(self._names)} zones; give one a zone")
        self._renew(now_s)
        for index, (record, now_up) in enumerate(zip(self._zones, up, strict=True)):
            if record.up and not now_up:
                self._lost[index] += 1
                self._covered[index] += any(up)
            record.observe(now_s, now_up)
        self._any.observe(now_s, any(up))

    def zones_now(self, usd_per_hour: Sequence[float]) -> list[ZoneNow]:
        """The zones as last read, with the prices given, for a decision."""
        return [
            ZoneNow(
                name=name,
                up=record.up,
                age_s=record.age_s,
                usd_per_hour=price,
                hazards=record.hazards(),
                other_up=other,
            )
            for name, record, price, other in zip(
                self._names, self._zones, usd_per_hour, self._other_up, strict=True
            )
        ]

    def together(self) -> Hazards | None:
        """Rates of "any zone is up"; None for a single zone, which speaks for itself."""
        return self._any.hazards() if len(self._names) > 1 else None

    def zone(self, name: str) -> ZoneRecord:
        """One zone's record."""
        return self._zones[self._names.index(name)]

    def _renew(self, now_s: float) -> None:
        if len(self._names) == 1:
            return
        if self._renewed_s is None:
            self._renewed_s = now_s
        elif now_s - self._renewed_s >= self._refresh_s:
            self._renewed_s = now_s
            self._other_up = [
                round((c + _LOSSES / 2) / (n + _LOSSES) * _SHARES) / _SHARES
                for c, n in zip(self._covered, self._lost, strict=True)
            ]
