"""What fits where, for one kind of worker: pools by domain, and domains by price. Pure.

    fitting = Fitting(supply.order, {"CPU": 4.0}, span_any=False)
    fitting.fits["rack"]                     # workers on one node of a pool
    fitting.domains["cloud-a"]               # its pools, best first
    fitting.by_price(Market.SPOT)            # domain -> USD an hour of a worker, cheapest first

Made once for all jobs of a plan whose workers take the same; it does not change while hosts are
given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rayburst.fleet.spec import Market
from rayburst.fleet.stock import PoolStock, times


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
        self._order: dict[frozenset[Market], Sequence[str]] = {}
        self._by_price: dict[Market, Mapping[str, float]] = {}

    def cheapest_first(self, markets: frozenset[Market]) -> Sequence[str]:
        """The domains with pools of these markets: by their best market, then by its price."""
        if markets not in self._order:
            ranks = {
                domain: min(stock.rank for stock, _ in usable)
                for domain, stocks in self.domains.items()
                if (usable := [one for one in stocks if one[0].view.market in markets])
            }
            self._order[markets] = sorted(ranks, key=lambda domain: ranks[domain])
        return self._order[markets]

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
