"""Grants on their way: what was opened a moment ago and is not on record as a host yet. Pure.

Between a cap that opens a pool and the host's record lie the autoscaler's tick and the provider's
call. A planner that forgot its grant meanwhile would open another pool for the same work, or close
this one and have the autoscaler end what it is just starting.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from rayburst.fleet.pools.base import Host

PROMISE_S = 20.0
"""After so long an open pool that brought no host is asked for no longer."""


@dataclass
class Promises:
    """Open promises by pool, oldest first. `add` after a plan, `count` before the next."""

    _given_at: dict[str, list[float]] = field(default_factory=dict)
    _seen: set[str] = field(default_factory=set)

    def add(self, pool: str, count: int, now: float) -> None:
        """Promise `count` nodes of `pool` at `now` (unix seconds)."""
        self._given_at.setdefault(pool, []).extend([now] * count)

    def count(
        self, hosts: Iterable[Host], failed_at: Mapping[str, float], now: float
    ) -> dict[str, int]:
        """Promises still open: each new host keeps one, a later failure or age ends them."""
        for host in hosts:
            if host.id not in self._seen:
                self._seen.add(host.id)
                if given := self._given_at.get(host.pool):
                    given.pop(0)
        for pool, given in self._given_at.items():
            earliest = max(now - PROMISE_S, failed_at.get(pool, 0.0))
            given[:] = [at for at in given if at > earliest]
        return {pool: len(given) for pool, given in self._given_at.items() if given}
