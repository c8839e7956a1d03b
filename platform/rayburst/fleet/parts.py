"""A gang on what a zone has of spot: fewer workers, or the others on-demand beside them. Pure.

    some = part(site, size, at_least_s=60.0)      # fewer workers, while the deadline can wait
    wish = mixed(site, size, at_least_s=0.0, can_restart=True)     # the others on-demand

Every change of hosts makes the whole gang start again, at a changeover d of all its hosts. A set of
hosts lasts L seconds (`stock.hosts_last_s`: until one of its pools has fewer than the set takes),
so of s workers s (L - d) / L do useful work in the mean if the set is new, and all s if the gang
runs on it already. A part is taken where that is most. Spot beside on-demand is taken where a
useful hour costs less than on-demand alone; a start of it also counts the slack that it uses up, at
what a second of slack is worth at most: the difference between the markets.

What the deadline policy says of all workers comes first: see `live.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from rayburst.fleet.jobs import USUAL, changeover_s
from rayburst.fleet.site import NOTHING, Site, Wish
from rayburst.fleet.spec import Market
from rayburst.fleet.stock import hosts_last_s

_STEPS = 16  # sizes that are compared, however large the gang
_DOMAINS = 2  # domains that are compared where it lives in none
_SPOT = frozenset({Market.SPOT})
_ON_DEMAND = frozenset({Market.ON_DEMAND})


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """Owned and spot hosts in one domain for some workers.

    Attributes:
        lasts_s: until one of the pools has fewer hosts than the set takes.
        runs: whether the gang is on them already.
        useful: workers less what the start of a new set costs.
    """

    wish: Wish
    lasts_s: float
    runs: bool
    useful: float


def part(site: Site, size: int, *, at_least_s: float, repays: float) -> Part | None:
    """The hosts on which most useful work is done; None where no set lasts `at_least_s`.

    A set on which the gang runs already may last less. `repays`: how many times a start counts, so
    that a wrong guess costs little.
    """
    found = [
        one
        for domain in _domains(site)
        for one in _parts(site, domain, size, repays)
        if one.wish.workers >= site.least and (one.runs or one.lasts_s >= at_least_s)
    ]
    best = max(found, key=lambda one: one.useful, default=None)
    if best is None:
        return None
    why = f"{best.wish.workers} of {size} workers on what there is"
    return replace(best, wish=replace(best.wish, size=size, can_grow=True, why=why))


def whole_lasts_s(site: Site, size: int) -> float | None:
    """How long owned and spot hosts for all workers last; None where they are not to be had.

    All are those that the pools of a domain hold when none is closed.
    """
    for domain in _domains(site):
        there = site.fill(domain, size, USUAL)
        if site.is_whole(domain, there.workers, size):
            return _lasts_s(site, there.pools)
    return None


def longest_s(site: Site) -> float:
    """The most that any set of spot hosts lasts: one host of the best pool."""
    return max(
        (
            hosts_last_s(stock.view, 1)
            for domain in _domains(site)
            for stock, _ in site.fitting.usable(domain, _SPOT)
        ),
        default=0.0,
    )


def mixed(site: Site, size: int, *, at_least_s: float, can_restart: bool) -> Wish:
    """Spot beside on-demand in one domain; nothing where on-demand alone is cheaper.

    Args:
        at_least_s: how long the spot hosts of a new set must last.
        can_restart: whether there is time for the start of a new set and for another one after a
            loss. A set that runs is kept without.
    """
    change_s, best, least_usd = changeover_s(site.ask), NOTHING, math.inf
    for domain in _domains(site):
        alone = site.fill(domain, size, _ON_DEMAND)
        if alone.workers < size:
            continue
        for one in _parts(site, domain, size, 1.0):
            there = _topped_up(site, one.wish, size)
            if there is None:
                continue
            usd, runs = there.usd_per_hour, runs_on(site, there.pools)
            if not runs:
                if not can_restart or one.lasts_s < at_least_s or one.lasts_s <= change_s:
                    continue
                usd = _with_starts(there, one, alone, change_s, size)
            if usd < min(least_usd, alone.usd_per_hour):
                best, least_usd = there, usd
    return best


def _with_starts(there: Wish, one: Part, alone: Wish, change_s: float, size: int) -> float:
    """USD of a useful hour: its start is paid, and the slack that it uses up."""
    if one.lasts_s == math.inf:
        return there.usd_per_hour
    slack_usd = alone.usd_per_hour - one.wish.usd_per_hour * size / one.wish.workers
    paid = there.usd_per_hour * one.lasts_s + max(slack_usd, 0.0) * change_s
    return paid / (one.lasts_s - change_s)


def _domains(site: Site) -> list[str]:
    """Where it lives; else the cheapest that may have spot."""
    if lives := site.lives_in():
        return lives
    return list(site.fitting.by_price(Market.SPOT))[:_DOMAINS]


def _parts(site: Site, domain: str, size: int, repays: float) -> Iterator[Part]:
    """What owned and spot hosts of a domain could be a part: what it has, all there are, fewer."""
    usual = {stock.view.name for stock, _ in site.fitting.usable(domain, USUAL)}
    if has := {pool: len(hosts) for pool, hosts in site.holds.items() if pool in usual and hosts}:
        yield _part(site, domain, size, has, repays)
    whole = site.fill(domain, size, USUAL)
    pools = {pool: count for pool, count in whole.pools.items() if count}
    step = max(1, whole.workers // _STEPS)
    while pools:
        if pools != has:
            yield _part(site, domain, size, pools, repays)
        if not any(_is_counted(site, pool) for pool in pools):
            return  # one host lasts as long as all
        _take_off(pools, step)


def _part(site: Site, domain: str, size: int, pools: Mapping[str, int], repays: float) -> Part:
    workers = min(sum(n * site.fits[pool] for pool, n in pools.items()), size)
    usd = sum(n * site.supply.pools[pool].price for pool, n in pools.items())
    lasts_s, runs = _lasts_s(site, pools), runs_on(site, pools)
    works = 1.0 if runs else max(1.0 - repays * changeover_s(site.ask) / lasts_s, 0.0)
    return Part(
        wish=Wish(pools=dict(pools), workers=workers, usd_per_hour=usd, domain=domain),
        lasts_s=lasts_s,
        runs=runs,
        useful=workers * works,
    )


def _take_off(pools: dict[str, int], count: int) -> None:
    """So many hosts less, of the pools that came last."""
    while count and pools:
        last = next(reversed(pools))
        off = min(count, pools[last])
        count, pools[last] = count - off, pools[last] - off
        if not pools[last]:
            del pools[last]


def _is_counted(site: Site, pool: str) -> bool:
    seen = site.supply.pools[pool].view.spot
    return seen is not None and bool(seen.lasts_s)


def _lasts_s(site: Site, pools: Mapping[str, int]) -> float:
    """Until one of the pools has fewer hosts than these beside what others have of it."""
    ends = 0.0
    for pool, count in pools.items():
        stock = site.supply.pools[pool]
        others = len(stock.nodes) - len(stock.draining) - len(stock.free)
        others -= len(site.holds.get(pool, ()))
        ends += 1.0 / hosts_last_s(stock.view, count + others)
    return 1.0 / ends if ends else math.inf


def runs_in(site: Site) -> set[Market]:
    """The markets of the hosts that its workers are on."""
    nodes, pools = site.supply.node, site.supply.pools
    return {pools[nodes[host].pool].view.market for host in site.ask.hosts if host in nodes}


def runs_on(site: Site, pools: Mapping[str, int]) -> bool:
    """Whether its workers are on so many hosts of these pools now, and on no others."""
    if not site.ask.hosts or sum(pools.values()) != len(site.ask.hosts):
        return False
    holds, mine = site.holds, set(site.ask.hosts)
    return all(
        sum(host in mine for host in holds.get(pool, ())) == count for pool, count in pools.items()
    )


def _topped_up(site: Site, wish: Wish, size: int) -> Wish | None:
    """The same with on-demand hosts of its domain for the other workers; None without the room."""
    if wish.workers >= size or wish.domain is None:
        return None
    pools, got, usd = dict(wish.pools), wish.workers, wish.usd_per_hour
    for stock, fit in site.fitting.usable(wish.domain, _ON_DEMAND):
        if got >= size:
            break
        name = stock.view.name
        count = min(math.ceil((size - got) / fit), site.supply.could(stock, site.job.id))
        if count > 0:
            pools[name] = count
            got, usd = got + count * fit, usd + count * stock.price
    if got < size:
        return None
    return replace(wish, pools=pools, workers=size, size=size, usd_per_hour=usd)
