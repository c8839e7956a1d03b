"""How many hosts of a gang go to which spot pool of its domain. Pure.

    split([Offer(spot_a, has=0, most=20), Offer(spot_b, has=0, most=20)], 10, least=2, change_s=30)
    # {"spot-a": 6, "spot-b": 4}

Each loss takes less of a gang that lies in several pools, but there are more of them, and at each
the rest of the gang stands still. So the cheapest pool, the two cheapest, and so on are compared by
what they cost with risk (`spread.py`, of the gang's own hosts) and restarts: a pool that lasts L
seconds makes the rest pay two changes (without it, and with its replacement) every L seconds. A
gang whose rest could not run stays together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rayburst.fleet.spread import FEW, deviation, together
from rayburst.fleet.stock import PoolStock, lasts_s

MOST_POOLS = 4
_STEPS = 16  # hosts are laid out in about so many steps, however large the gang


@dataclass(frozen=True, kw_only=True, slots=True)
class Offer:
    """A pool: the gang `has` some of its hosts, and could have `most` of them in all."""

    stock: PoolStock
    has: int
    most: int


def split(offers: Sequence[Offer], hosts: int, *, least: int, change_s: float) -> dict[str, int]:
    """Hosts by pool, with those that it has; {} where there is no room for `hosts` in all.

    Args:
        offers: by rank, spot pools that differ in price and risk only.
        least: hosts with which the gang still runs.
        change_s: what a change of some of its hosts costs the gang.
    """
    able = sorted((one for one in offers if one.most), key=lambda one: not one.has)
    fewest = max(sum(one.has > 0 for one in able), 1)  # what it has is not given up to be spread
    most = max(fewest, MOST_POOLS if hosts > FEW else 1)
    layouts = [
        _Layout(able[:count], hosts, least=least, change_s=change_s)
        for count in range(fewest, min(len(able), most) + 1)
    ]
    good = [one for one in layouts if one.goes_on]
    if good:
        return min(good, key=lambda one: one.cost).by_pool
    return _in_order(able, hosts)


def _in_order(offers: Sequence[Offer], hosts: int) -> dict[str, int]:
    """As many of the first as there are, then of the next: a rest that cannot run needs all."""
    found = {offer.stock.view.name: offer.has for offer in offers if offer.has}
    for offer in offers:
        more = min(offer.most - offer.has, hosts - sum(found.values()))
        if more > 0:
            found[offer.stock.view.name] = offer.has + more
    return found


class _Layout:
    """Hosts over some pools, each where the next one costs least."""

    def __init__(self, offers: Sequence[Offer], hosts: int, *, least: int, change_s: float) -> None:
        self._offers, self._hosts, self._least = offers, hosts, least
        self._prices = [offer.stock.rank[3] for offer in offers]
        views = [offer.stock.view for offer in offers]
        weights = [deviation(view) for view in views]
        self._risks = [
            [w * v * together(a, b) / hosts for v, b in zip(weights, views, strict=True)]
            for w, a in zip(weights, views, strict=True)
        ]
        self._restarts = [2 * change_s / lasts_s(view) for view in views]
        self._count = [offer.has for offer in offers]
        together_ = hosts if len(offers) == 1 else hosts - least  # the rest is to go on
        step = -(-hosts // _STEPS)
        while (left := hosts - sum(self._count)) > 0:
            rooms = [min(o.most, together_) - n for o, n in zip(offers, self._count, strict=True)]
            if not (able := [i for i, room in enumerate(rooms) if room > 0]):
                break
            best = min(able, key=self._next)
            self._count[best] += min(step, left, rooms[best])

    @property
    def by_pool(self) -> dict[str, int]:
        pairs = zip(self._offers, self._count, strict=True)
        return {offer.stock.view.name: count for offer, count in pairs if count}

    @property
    def goes_on(self) -> bool:
        """Whether all hosts are there, and the rest runs on whichever pool is lost."""
        used = [count for count in self._count if count]
        if sum(used) != self._hosts:
            return False
        return len(used) == 1 or self._hosts - max(used) >= self._least

    @property
    def cost(self) -> float:
        """USD by the hour, with risk and with the restarts of the rest."""
        counts = list(enumerate(self._count))
        paid = sum(n * self._prices[i] for i, n in counts)
        risk = sum(n * self._risk_of(i) for i, n in counts) / 2
        restarts = sum((self._hosts - n) * self._restarts[i] for i, n in counts if n)
        return paid + self._prices[0] * (risk + restarts)

    def _next(self, index: int) -> float:
        """What one host more of a pool adds to the cost."""
        more = self._risk_of(index) - self._restarts[index]
        return self._prices[index] + self._prices[0] * more

    def _risk_of(self, index: int) -> float:
        return sum(n * risk for n, risk in zip(self._count, self._risks[index], strict=True))
