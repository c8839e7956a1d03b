"""Room for a job that waits, from jobs that matter less. Pure.

A job that found no room takes hosts of jobs with a lower priority (first what those have above
their least, then all of it), and of the same priority from tenants whose share is larger, down to
the least of each job. Jobs with a deadline keep theirs against the same priority.

A host that is taken so stays: its job's grant no longer names it, the job saves and leaves, and the
host is then free. Nothing is taken where it would not be enough.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rayburst.fleet.jobs import JobView
from rayburst.fleet.moves import Stake
from rayburst.fleet.site import Site
from rayburst.fleet.stock import PoolStock
from rayburst.fleet.supply import Supply
from rayburst.fleet.turns import Shares

AT_ONCE = 8
"""Jobs that room is made for in one plan; the others have their turn a second later."""


def make_room(stakes: Sequence[Stake], supply: Supply, shares: Shares) -> None:
    """Take hosts from stakes for those that have none, in the order given."""
    waiting = [s for s in stakes if not s.pools and not s.wish.pools and not s.wish.short_usd]
    if not waiting or len(waiting) == len(stakes):
        return
    holders: dict[str, list[Stake]] = {}
    for stake in stakes:
        for pool in stake.pools:
            holders.setdefault(pool, []).append(stake)
    for stake in waiting[:AT_ONCE]:
        for stocks in _usable(stake.site):
            there = {id(v): v for one, _ in stocks for v in holders.get(one.view.name, ())}
            victims = [v for v in there.values() if v.pools and _yields(v, stake.job, shares)]
            victims.sort(key=lambda v: _least_first(v.job, shares))
            if victims and _take(stake, stocks, victims, supply, shares):
                break


def _usable(site: Site) -> Iterator[list[tuple[PoolStock, int]]]:
    """The pools of each domain that a job may use at all."""
    markets = site.job.terms.markets
    for stocks in site.domains.values():
        yield [one for one in stocks if one[0].view.market in markets]


def _least_first(job: JobView, shares: Shares) -> tuple[int, float, str]:
    return (job.terms.priority, -shares.of(job.terms.tenant), job.id)


def _yields(other: Stake, job: JobView, shares: Shares) -> bool:
    if other.job.terms.priority != job.terms.priority:
        return other.job.terms.priority < job.terms.priority
    larger = shares.of(other.job.terms.tenant) > shares.of(job.terms.tenant)
    return larger and other.job.terms.deadline is None


def _take(
    stake: Stake,
    stocks: Sequence[tuple[PoolStock, int]],
    victims: Sequence[Stake],
    supply: Supply,
    shares: Shares,
) -> bool:
    """Whether pools have room for the least of `stake` now, soon, or from these victims."""
    pools = {stock.view.name: fit for stock, fit in stocks}
    missing = stake.site.least
    for stock, fit in stocks:
        missing -= fit * (supply.could(stock, stake.job.id) + len(stock.leaving))
    plan: list[tuple[Stake, str]] = []
    for whole in (False, True):  # first what is above the least of each, then all
        for victim in victims:
            if missing <= 0:
                break
            if whole and victim.job.terms.priority == stake.job.terms.priority:
                continue
            for pool in _spare(victim, pools, supply, plan, whole=whole):
                if missing > 0:
                    plan.append((victim, pool))
                    missing -= pools[pool]
    if missing > 0:
        return False
    for victim, pool in plan:
        _yield_one(victim, pool, stake.job, supply, shares)
    return True


def _spare(
    victim: Stake,
    pools: dict[str, int],
    supply: Supply,
    plan: Sequence[tuple[Stake, str]],
    *,
    whole: bool,
) -> list[str]:
    """Pools of hosts that a victim can spare, one entry a host."""
    gone = [pool for who, pool in plan if who is victim]
    fit = victim.site.fits
    workers = victim.workers - sum(fit[pool] for pool in gone)
    spare = []
    for pool, count in victim.pools.items():
        held = min(count, len(supply.holds(victim.job.id).get(pool, ()))) - gone.count(pool)
        for _ in range(held if pool in pools else 0):
            if whole or workers - fit[pool] >= victim.least:
                workers -= fit[pool]
                spare.append(pool)
    return spare


def _yield_one(victim: Stake, pool: str, job: JobView, supply: Supply, shares: Shares) -> None:
    if pool not in victim.pools:
        return  # it had to give up all of its hosts for the ones before
    victim.pools[pool] -= 1
    hosts = supply.holds(victim.job.id)[pool]
    if victim.pools[pool] < len(hosts):
        victim.yields.add(hosts[victim.pools[pool]])
    fit = victim.site.fits[pool]
    shares.add(victim.job.terms.tenant, victim.site.ask.resources, -fit)
    if victim.workers < victim.site.least:  # a gang that cannot run holds nothing
        for name, count in victim.pools.items():
            victim.yields.update(supply.holds(victim.job.id).get(name, ())[:count])
        supply.take_back(victim.job.id)
        victim.pools.clear()
    victim.pools = {name: count for name, count in victim.pools.items() if count}
    why = f"{pool} goes to job {job.id} of priority {job.terms.priority}, tenant {job.terms.tenant}"
    victim.wish = victim.wish.because(why)
