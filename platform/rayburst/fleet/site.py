"""The pools that one job could use, and what of them it could have. Pure.

    site = Site(job, ask, supply, span_any=False)
    site.best(4, USUAL)          # nodes by pool for up to four workers, in one domain

A gang stays in one domain. What it holds there comes first, so that the same fleet gets the same
answer again. Knows no deadline: that is `live.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from rayburst.fleet.jobs import ALL, USUAL, JobView, resize_s
from rayburst.fleet.spec import Market
from rayburst.fleet.split import Offer, split
from rayburst.fleet.spread import FEW
from rayburst.fleet.stock import PoolStock
from rayburst.fleet.supply import Supply
from rayburst.train.grants import Ask

LOOK_AT = 4
"""Domains with room for the least of a job that one choice compares, the cheapest first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Wish:
    """What a job should have: `pools` is nodes by pool; none is waiting.

    Attributes:
        workers: how many workers these nodes hold, at most what is wanted.
        size: how many are wanted.
        can_grow: whether it has fewer than it could, since its deadline can wait for cheaper ones.
        late_s, short_usd: as in a deadline's Decision.
    """

    pools: Mapping[str, int] = field(default_factory=dict)
    workers: int = 0
    size: int = 0
    can_grow: bool = False
    usd_per_hour: float = 0.0
    domain: str | None = None
    why: str = ""
    late_s: float = 0.0
    short_usd: float = 0.0

    def because(self, why: str) -> Wish:
        """The same for another reason."""
        return replace(self, why=why)


NOTHING = Wish()


class Site:
    """One job before the pools, while a plan is made."""

    def __init__(self, job: JobView, ask: Ask, supply: Supply, *, span_any: bool) -> None:
        self.job, self.ask, self.supply = job, ask, supply
        self.least = max(ask.least, 1)
        self.span_any = span_any if job.terms.span_any is None else job.terms.span_any
        self.fitting = supply.fitting(ask.resources, self.span_any)
        self.fits, self.domains = self.fitting.fits, self.fitting.domains
        self._filled: dict[object, tuple[int, Wish]] = {}

    @property
    def holds(self) -> Mapping[str, Sequence[str]]:
        """Pool -> the hosts it has, those that it was given in this plan included."""
        return self.supply.holds(self.job.id)

    @property
    def workers(self) -> int:
        """Workers that fit what it has: its hosts, and those that are on their way to it."""
        return sum([count * self.fits[pool] for pool, count in self._has().items()])

    def _has(self) -> Mapping[str, int]:
        return self.supply.has_of(self.job.id)

    def held_in(self, domain: str, markets: frozenset[Market]) -> int:
        """Workers that fit what it has in a domain."""
        if not (has := self._has()):
            return 0
        return sum(
            has.get(stock.view.name, 0) * fit
            for stock, fit in self.domains.get(domain, ())
            if stock.view.market in markets
        )

    def is_whole(self, domain: str, workers: int, size: int) -> bool:
        """Whether these are all the workers that owned and spot pools of a domain hold when none
        is closed."""
        return workers >= size or workers >= self._whole(domain, size)

    def _whole(self, domain: str, size: int) -> int:
        most = 0
        for stock, fit in self.fitting.usable(domain, USUAL):
            there = len(stock.free) + stock.promised + max(stock.room, 0)
            most += fit * (there + self.supply.has(self.job.id, stock.view.name))
            if most >= size:
                return size
        return max(most, self.least)

    def resting(self) -> str:
        """Why pools that it could use are closed for now; "" where none is."""
        markets = self.job.terms.markets
        whys = [
            why
            for pool, why in self.supply.resting.items()
            if self.fits[pool] and self.supply.pools[pool].view.market in markets
        ]
        more = f" and {len(whys) - 2} more" if len(whys) > 2 else ""
        return "; ".join(whys[:2]) + more

    def settled(self, size: int, late_s: float) -> Wish | None:
        """What it holds, where that is all it wants: the full size in one domain, none dear."""
        domains, workers, usd = set(), 0, 0.0
        smallest = size
        for pool, hosts in self.holds.items():
            stock = self.supply.pools[pool]
            fit = self.fits[pool]
            if stock.view.market is Market.ON_DEMAND:
                return None
            domains.add("" if self.span_any else stock.view.domain)
            workers += len(hosts) * fit
            smallest = min(smallest, fit)
            usd += len(hosts) * stock.price
        if len(domains) != 1 or not size <= workers < size + smallest:
            return None
        pools = {pool: len(hosts) for pool, hosts in self.holds.items()}
        return Wish(
            pools=pools,
            workers=size,
            size=size,
            usd_per_hour=usd,
            domain=domains.pop(),
            why=f"all {size} workers it wants",
            late_s=late_s,
        )

    def fill(self, domain: str, workers: int, markets: frozenset[Market]) -> Wish:
        """Nodes of one domain for up to so many workers: those that it has, then by rank."""
        if domain not in self.lives_in():
            return self._offer(domain, workers, markets)
        key, state = (domain, workers, markets), self.supply.state_of(domain)
        known = self._filled.get(key)
        if known is None or known[0] != state:
            known = self._filled[key] = (state, self._fill(domain, workers, markets))
        return known[1]

    def _offer(self, domain: str, workers: int, markets: frozenset[Market]) -> Wish:
        """What a domain has for a job that has nothing there: the same for all such jobs."""
        key = (self.fitting, domain, workers, markets, self.least, resize_s(self.ask))
        state = self.supply.state_of(domain)
        offer = self.supply.offers.get(key)
        if offer is None or offer[0] != state:
            offer = (state, self._fill(domain, workers, markets))
            self.supply.offers[key] = offer
        wish: Wish = offer[1]
        return wish

    def _fill(self, domain: str, workers: int, markets: frozenset[Market]) -> Wish:
        usable, alike = self.fitting.usable(domain, markets), self.fitting.alike(domain)
        pools: dict[str, int] = {}
        got = 0
        if has := self._has():
            for stock, fit in usable:
                own = has.get(stock.view.name, 0)
                if own and got < workers:
                    pools[stock.view.name] = min(own, math.ceil((workers - got) / fit))
                    got += pools[stock.view.name] * fit
        for stock, fit in usable:
            if got >= workers:
                break
            if alike and stock is alike[0][0] and workers > FEW * fit:
                laid_out = self._split(alike, pools, workers - got, got)
                got += sum([n - pools.get(pool, 0) for pool, n in laid_out.items()]) * fit
                pools.update(laid_out)
                if got >= workers:
                    break
            before = pools.get(stock.view.name, 0)
            most = self.supply.could(stock, self.job.id)
            if most > before:
                pools[stock.view.name] = min(before + math.ceil((workers - got) / fit), most)
                got += (pools[stock.view.name] - before) * fit
        usd = sum(count * self.supply.pools[pool].price for pool, count in pools.items())
        return Wish(pools=pools, workers=min(got, workers), usd_per_hour=usd, domain=domain)

    def _split(
        self, alike: Sequence[tuple[PoolStock, int]], pools: Mapping[str, int], more: int, got: int
    ) -> dict[str, int]:
        """Hosts of spot pools that rank alike, for so many more workers; {} without the room."""
        fit = alike[0][1]
        held = sum([pools.get(stock.view.name, 0) for stock, _ in alike])
        most = [self.supply.could(stock, self.job.id) for stock, _ in alike]
        hosts = held + math.ceil(more / fit)
        if sum(most) < hosts:
            return {}
        offers = [
            Offer(stock=stock, has=pools.get(stock.view.name, 0), most=room)
            for (stock, _), room in zip(alike, most, strict=True)
        ]
        rest = max(self.least - (got - held * fit), 0)  # of the least, beside its other hosts
        return split(offers, hosts, least=math.ceil(rest / fit), change_s=resize_s(self.ask))

    def best(self, workers: int, markets: frozenset[Market]) -> Wish:
        """Where it lives, if there is room; else the domain that holds most, the cheapest first.

        Nothing where no domain holds the least.
        """
        lives = [d for d in self.lives_in() if self.held_in(d, ALL) >= self.least]
        for domain in lives:
            if (wish := self.fill(domain, workers, markets)).workers >= self.least:
                return wish
        question = (self.fitting, self.least, markets)
        owns = any([self.supply.pools[p].view.market in markets for p in self._has()])
        if not owns and question in self.supply.in_vain:
            return NOTHING
        found, looked, here = NOTHING, 0, self.lives_in()
        for domain in self.fitting.cheapest_first(markets, self.supply.crowd):
            look = self._fill if domain in here else self._offer
            wish = look(domain, workers, markets)
            if wish.workers < self.least:
                continue
            found = wish if wish.workers > found.workers else found
            looked += 1
            if found.workers >= workers or looked == LOOK_AT:
                break
        if found is NOTHING and not owns:
            self.supply.in_vain.add(question)
        return found

    def lives_in(self) -> list[str]:
        """The domains in which it has hosts, or some on their way."""
        pools = self._has()
        if self.span_any:
            return [""] if pools and "" in self.domains else []
        if not pools:
            return []
        found = [self.supply.pools[pool].view.domain for pool in pools]
        return [domain for domain in dict.fromkeys(found) if domain in self.domains]
