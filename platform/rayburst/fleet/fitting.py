"""What fits where, for one kind of worker: pools by domain, and domains by price. Pure.

    fitting = Fitting(supply.order, {"CPU": 4.0}, span_any=False)
    fitting.fits["rack"]                     # workers on one node of a pool
    fitting.domains["cloud-a"]               # its pools, best first
    fitting.by_price(Market.SPOT)            # domain -> USD an hour of a worker, cheapest first

Made once for all jobs of a plan whose workers take the same; it does not change while hosts are
given.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rayburst.fleet.spec import Market
from rayburst.fleet.spread import Crowd
from rayburst.fleet.stock import PoolStock, Rank, times


class Fitting:
    """Pools and domains as workers that take `resources` see them; `order` is best first."""

    def __init__(
        self,
        order: Sequence[PoolStock],
        resources: Mapping[str, float],
        *,
        span_any: bool,
    ) -> None:
        self.fits: Mapping[str, int] = {
            stock.view.name: times(stock.view.resources, resources) for stock in order
        }
        self.domains: dict[str, list[tuple[PoolStock, int]]] = {}
        for stock in order:
            if (count := self.fits[stock.view.name]) > 0:
                domain = "" if span_any else stock.view.domain
                self.domains.setdefault(domain, []).append((stock, count))
        self._order: dict[frozenset[Market], tuple[int, Sequence[str]]] = {}
        self._usable: dict[tuple[str, frozenset[Market]], Sequence[tuple[PoolStock, int]]] = {}
        self._alike: dict[str, Sequence[tuple[PoolStock, int]]] = {}
        self._by_price: dict[Market, Mapping[str, float]] = {}

    def cheapest_first(self, markets: frozenset[Market], crowd: Crowd) -> Sequence[str]:
        """The domains with pools of these markets: by their best market, then by its price.

        Spot counts dearer where much would be lost with it, as of the `era` of the crowd.
        """
        era, order = self._order.get(markets, (-1, ()))
        if era != crowd.era:
            order = [domain for _, domain in sorted(self._ranks(markets, crowd))]
            self._order[markets] = (crowd.era, order)
        return order

    def _ranks(self, markets: frozenset[Market], crowd: Crowd) -> Iterator[tuple[Rank, str]]:
        for domain, stocks in self.domains.items():
            usable = [stock for stock, _ in stocks if stock.view.market in markets]
            if usable:
                market, recent, unknown, _, name = usable[0].rank
                yield (market, recent, unknown, crowd.counted(usable[0]), name), domain

    def usable(self, domain: str, markets: frozenset[Market]) -> Sequence[tuple[PoolStock, int]]:
        """The pools of a domain in these markets, best first."""
        key = (domain, markets)
        if key not in self._usable:
            found = [one for one in self.domains[domain] if one[0].view.market in markets]
            self._usable[key] = found
        return self._usable[key]

    def alike(self, domain: str) -> Sequence[tuple[PoolStock, int]]:
        """The spot pools of a domain over which a gang may be spread: they rank like the best one,
        hold as many workers, and there are at least two."""
        if domain not in self._alike:
            spot = [one for one in self.domains[domain] if one[0].view.market is Market.SPOT]
            found = [s for s in spot if s[0].rank[:3] == spot[0][0].rank[:3] and s[1] == spot[0][1]]
            self._alike[domain] = found if len(found) > 1 else ()
        return self._alike[domain]

    def by_price(self, market: Market) -> Mapping[str, float]:
        """Domain -> USD an hour of one worker on its cheapest pool of a market, cheapest first.

        Pools of unknown price are left out.
        """
        if market not in self._by_price:
            found: dict[str, float] = {}
            for domain, stocks in self.domains.items():
                usd = [
                    stock.price / fit
                    for stock, fit in stocks
                    if stock.view.market is market and stock.view.price_usd_per_hour
                ]
                if usd:
                    found[domain] = min(usd)
            self._by_price[market] = dict(sorted(found.items(), key=lambda one: (one[1], one[0])))
        return self._by_price[market]
