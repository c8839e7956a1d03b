"""What the EC2 endpoint of this machine has to give: capacity, quotas and prices. Pure.

    market = Market()
    market.capacity["m6i.large", "us-east-1a", "spot"] = 2
    market.capacity[ANY, "us-east-1b", "spot"] = 0       # of all types together
    market.room(("m6i.large", "us-east-1a", "spot"), held)

It knows what is held, not who holds it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

ANY = "*"
"""Stands for all instance types of a zone together."""

Place = tuple[str, str, str]
"""Instance type, zone, and "spot" or "on-demand"."""

NO_CAPACITY = "InsufficientInstanceCapacity"
OVER_QUOTA = {"spot": "MaxSpotInstanceCountExceeded", "on-demand": "VcpuLimitExceeded"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Held:
    """An instance that lives. One that was given notice makes no room, and takes none."""

    id: str
    place: Place
    leaving: bool = False


@dataclass(kw_only=True, slots=True)
class Market:
    """What there is. A place without an entry has no end, an instance without a price costs none.

    Attributes:
        capacity: instances that a place has in all.
        prices: dollars an hour of a spot instance, by type (or ANY) and zone.
        quota: instances that the account may have, by "spot" and "on-demand".
    """

    capacity: dict[Place, int] = field(default_factory=dict)
    prices: dict[tuple[str, str], float] = field(default_factory=dict)
    quota: dict[str, int] = field(default_factory=dict)

    def clear(self) -> None:
        """Forget all limits and prices."""
        self.capacity.clear()
        self.prices.clear()
        self.quota.clear()

    def room(self, place: Place, held: Iterable[Held]) -> float:
        """How many more instances a place has; infinite where nothing limits it."""
        _, zone, market = place
        here = [one.place for one in held if not one.leaving and one.place[1:] == (zone, market)]
        room = float("inf")
        if (most := self.capacity.get(place)) is not None:
            room = most - here.count(place)
        if (most := self.capacity.get((ANY, zone, market))) is not None:
            room = min(room, most - len(here))
        return max(room, 0)

    def over_quota(self, market: str, count: int, held: Iterable[Held]) -> bool:
        """Whether `count` more instances are more than the account may have."""
        most = self.quota.get(market)
        return most is not None and sum(one.place[2] == market for one in held) + count > most

    def choice(self, places: Sequence[Place], count: int, held: Sequence[Held]) -> int:
        """Which place a request gets: the cheapest that has all of it, else the one with most."""
        rooms = [min(self.room(place, held), count) for place in places]
        prices = [self.price(kind, zone) for kind, zone, _ in places]
        return max(range(len(places)), key=lambda index: (rooms[index], -prices[index], -index))

    def price(self, kind: str, zone: str) -> float:
        """Dollars an hour of a spot instance."""
        return self.prices.get((kind, zone), self.prices.get((ANY, zone), 0.0))

    def surplus(self, held: Iterable[Held]) -> list[str]:
        """Instances above what their place has: those that `held` lists last."""
        kept: list[Held] = []
        gone: list[str] = []
        for one in held:
            if one.leaving:
                continue
            if self.room(one.place, kept) >= 1:
                kept.append(one)
            else:
                gone.append(one.id)
        return gone
