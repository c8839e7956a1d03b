"""What the fleet has seen of its spot pools: which are up, for how long, and their rates. Pure.

    outlook = Outlook(["spot-a", "spot-b"])
    outlook.observe(now, down={"spot-b"}, hosts={"spot-a": 3, "spot-b": 1})
    outlook.rates()["spot-a"], outlook.together

A pool is down from a failed launch or an interruption until its cool-down is over, and up
otherwise: what nobody tries, nobody knows. The records are those of replay (`market.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from rayburst.fleet.hazards import REFRESH_S, Hazards
from rayburst.fleet.levels import LevelRecord
from rayburst.fleet.market import MarketRecord
from rayburst.fleet.recorded import PRIOR
from rayburst.fleet.view import SpotRates

EVERY_S = 30.0
"""How often a reading is taken while nothing changes."""


class Outlook:
    """Readings of all spot pools of a fleet, and the rates that follow. Time only grows.

    Args:
        prior: rates of a pool that was not read yet.
        refresh_s: how often rates are counted anew.
    """

    def __init__(
        self, pools: Sequence[str], *, prior: Hazards = PRIOR, refresh_s: float = REFRESH_S
    ) -> None:
        self._pools = list(pools)
        self._record = (
            MarketRecord(prior=prior, zones=pools, refresh_s=refresh_s) if pools else None
        )
        # a level that was just reached is a run that has just begun
        self._levels = {pool: LevelRecord(1.0 / prior.up[0]) for pool in pools}
        self._seen: tuple[bool, ...] = ()
        self._seen_s = 0.0

    @property
    def together(self) -> Hazards | None:
        """Rates of "any pool is up"; None with fewer than two pools."""
        return self._record.together() if self._record else None

    def observe(
        self, now_s: float, down: Collection[str], hosts: Mapping[str, int] | None = None
    ) -> None:
        """Take a reading; of a market where something changed or `EVERY_S` have passed.

        Args:
            hosts: how many each pool has that stay; None leaves the record of levels alone.
        """
        for pool, count in (hosts or {}).items():
            if pool in self._levels:
                short = pool in down
                self._levels[pool].observe(now_s, count, short=short, lost=short)
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
                up=zone.up,
                age_s=zone.age_s,
                hazards=zone.hazards,
                other_up=zone.other_up,
                lasts_s=self._levels[zone.name].lasts_s(),
            )
            for zone in now
        }
