"""What the fleet has seen of its spot pools: which are up, for how long, and their rates. Pure.

    outlook = Outlook(["spot-a", "spot-b"])
    outlook.observe(now, down={"spot-b"})
    outlook.rates()["spot-a"], outlook.together

A pool is down from a failed launch or an interruption until its cool-down is over, and up
otherwise: what nobody tries, nobody knows. The records are those of replay (`market.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from rayburst.fleet.hazards import Hazards
from rayburst.fleet.market import MarketRecord
from rayburst.fleet.recorded import PRIOR
from rayburst.fleet.view import SpotRates

EVERY_S = 30.0
"""How often a reading is taken while nothing changes."""


class Outlook:
    """Readings of all spot pools of a fleet, and the rates that follow. Time only grows."""

    def __init__(self, pools: Sequence[str]) -> None:
        self._pools = list(pools)
        self._record = MarketRecord(prior=PRIOR, zones=pools) if pools else None
        self._seen: tuple[bool, ...] = ()
        self._seen_s = 0.0

    @property
    def together(self) -> Hazards | None:
        """Rates of "any pool is up"; None with fewer than two pools."""
        return self._record.together() if self._record else None

    def observe(self, now_s: float, down: Collection[str]) -> None:
        """Take a reading, where something changed or `EVERY_S` have passed."""
        up = tuple(pool not in down for pool in self._pools)
        if self._record is None or (up == self._seen and now_s - self._seen_s < EVERY_S):
            return
        self._record.observe(now_s, up)
        self._seen, self._seen_s = up, now_s

    def rates(self) -> dict[str, SpotRates]:
        """Every spot pool as read last."""
        if self._record is None or not self._seen:
            return {}
        now = self._record.zones_now(usd_per_hour=[0.0] * len(self._pools))
        return {
            zone.name: SpotRates(
                up=zone.up, age_s=zone.age_s, hazards=zone.hazards, other_up=zone.other_up
            )
            for zone in now
        }
