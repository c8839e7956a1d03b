"""How much dearer a spot pool counts because much would be lost together with it. Pure.

    crowd = Crowd(view.pools)
    crowd.add("spot-a", 12)
    crowd.dearer("spot-a")              # 0.08: the next host there counts 8% dearer

Mean and variance (Markowitz, "Portfolio Selection", 1952; for servers that are taken away: Sharma,
Irwin, Shenoy, "Portfolio-driven Resource Management for Transient Cloud Servers", SIGMETRICS 2017):
of N spot hosts, n_p in pool p, the cost is counted as

    sum_p n_p c_p + c N/2 * sum_pq x_p x_q r_pq s_p s_q        x_p = n_p / N

- c_p is the price of a useful hour (`stock.rank`), c that of the pool in question;
- s_p is the standard deviation of "a host of p is taken within the next hour": with chance
  f = 1 - exp(-1 h / L_p), where L_p is how long the pool is likely to last, s_p^2 = f (1 - f);
- r_pq says how far they are taken together: 1/2 for one zone, 1/2 for one kind of machine, so that
  a pool has 1 with itself.

The risk of one relative unit weighs as one relative unit of cost, as for who wants the logarithm of
what he has to grow: there is no constant to tune. A host more in p costs the derivative,
c_p (1 + s_p * sum_q r_pq s_q n_q / N), and each goes where that is least. The first `FEW` hosts
that would be lost together count nothing.

Knows nothing of jobs: `split.py` says when a gang is spread.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence

from rayburst.fleet.spec import Market
from rayburst.fleet.stock import PoolStock, kind, lasts_s
from rayburst.fleet.view import PoolView

FEW = 4
"""So many hosts may be lost together without counting."""

WITHIN_S = 3600.0
"""The time ahead in which hosts are taken or not."""

_ERA_SHARE = 0.02  # of the hosts

LOOK_AT = 8
"""Pools that the choice of one more host compares, the cheapest first."""


def deviation(pool: PoolView) -> float:
    """Standard deviation of "taken within the next hour", s_p above."""
    stays = math.exp(-WITHIN_S / lasts_s(pool))
    return math.sqrt(stays * (1.0 - stays))


def together(one: PoolView, other: PoolView) -> float:
    """How far hosts of two pools are taken together, r_pq above."""
    return ((one.domain == other.domain) + (kind(one) == kind(other))) / 2


class Crowd:
    """Spot hosts that live or are to come, by what takes them together."""

    def __init__(self, pools: Iterable[PoolView]) -> None:
        self._of = {
            pool.name: (deviation(pool), pool.domain, kind(pool))
            for pool in pools
            if pool.market is Market.SPOT
        }
        self._zones: defaultdict[str, float] = defaultdict(float)
        self._kinds: defaultdict[str, float] = defaultdict(float)
        self._hosts = 0
        self._since = 0
        self.era = 0
        """Another number after some hosts more: until then an order of pools may be kept."""

    def add(self, pool: str, count: int) -> None:
        """So many hosts more of a pool; of other markets than spot they do not count."""
        if (found := self._of.get(pool)) is None:
            return
        weight, zone, machines = found
        self._zones[zone] += weight * count
        self._kinds[machines] += weight * count
        self._hosts += count
        self._since += abs(count)
        if self._since >= max(FEW, self._hosts * _ERA_SHARE):
            self.era, self._since = self.era + 1, 0

    def dearer(self, pool: str) -> float:
        """By what share one more host of a pool counts dearer than its price."""
        if (found := self._of.get(pool)) is None:
            return 0.0
        weight, zone, machines = found
        beside = (self._zones[zone] + self._kinds[machines]) / 2 - FEW * weight
        return weight * beside / (self._hosts + 1) if beside > 0 else 0.0

    def best(self, stocks: Sequence[PoolStock]) -> int:
        """The index of the pool where one more host goes; they come in the order of their rank."""
        first = stocks[0]
        if first.view.market is not Market.SPOT or self._hosts < FEW:
            return 0
        equal = [i for i, stock in enumerate(stocks) if stock.rank[:3] == first.rank[:3]]
        return min(equal, key=lambda i: self.counted(stocks[i]))

    def counted(self, stock: PoolStock) -> float:
        """What a useful hour of one more host of a pool counts, in USD."""
        return stock.rank[3] * (1 + self.dearer(stock.view.name))
