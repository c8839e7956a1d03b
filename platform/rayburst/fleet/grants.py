"""Which hosts each job may use: wishes, in turn, onto what there is. Pure.

    grants, actions = grant_jobs(view, demand, supply, policy)

1. Every job keeps what it holds. 2. In turn (`turns.py`), a job with a deadline gets what its
deadline needs, any other job its least or its floor: all of it or nothing, so that no two gangs
hold half each. 3. What is left is given one node at a time, always to the smallest share. 4. A job
that finds none takes hosts of jobs that matter less. 5. Jobs come home where that pays.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from rayburst.fleet.deadline import DeadlinePolicy
from rayburst.fleet.jobs import ALLOWED, JobView, work_left_s
from rayburst.fleet.live import wish_for
from rayburst.fleet.moves import Stake, change_over, homeward
from rayburst.fleet.purse import Purse
from rayburst.fleet.reclaim import make_room
from rayburst.fleet.site import Site
from rayburst.fleet.spec import Market
from rayburst.fleet.stock import PoolStock
from rayburst.fleet.supply import Supply
from rayburst.fleet.turns import Shares, Turns
from rayburst.fleet.view import Action, ActionKind, Demand, FleetView
from rayburst.train.grants import Grant


def grant_jobs(
    demand: Demand, supply: Supply, policy: DeadlinePolicy, *, span_any: bool
) -> tuple[dict[str, Grant], list[Action]]:
    """Grants for all jobs that ask, and the decisions behind them; `supply` is used up."""
    jobs = [job for job in demand.jobs if job.ask is not None]
    for job in jobs:
        if job.grant is not None:
            supply.hold(job.id, (*job.grant.hosts, *job.grant.coming))
    for job in jobs:
        if job.grant is not None:
            supply.keep(job.id, job.grant.pools)
    supply.settle()
    shares = Shares(_totals(supply.view), demand.tenants)
    purse = Purse(supply, demand.tenants, jobs)
    stakes: dict[str, Stake] = {}
    for job in Turns(jobs, shares, supply.held):
        if job.ask is not None:
            site = Site(job, job.ask, supply, span_any=span_any)
            stake = Stake(site, wish_for(site, policy, left_usd=purse.left(job)))
            _give(stake, supply, shares, purse)
            stakes[job.id] = stake
    _grow(stakes.values(), supply, shares, purse)
    make_room(list(stakes.values()), supply, shares)
    settled = _settled(stakes.values(), supply, shares, purse)
    supply.unsettle()
    return settled


def _settled(
    stakes: Iterable[Stake], supply: Supply, shares: Shares, purse: Purse
) -> tuple[dict[str, Grant], list[Action]]:
    grants: dict[str, Grant] = {}
    actions: list[Action] = []
    has_home = any(
        stock.view.market is Market.ON_PREM and (stock.free or stock.promised or stock.room > 0)
        for stock in supply.order
    )
    for stake in stakes:
        home = homeward(stake) if has_home or stake.is_homebound else None
        if home is not None and purse.affords(stake.job, home.pools):
            supply.take_back(stake.job.id)
            stake.pools.clear()
            stake.wish = home
            _give(stake, supply, shares, purse)
        grants[stake.job.id], done = change_over(stake, supply)
        actions += [*done, *_said(stake, grants[stake.job.id], bool(done))]
    return grants, actions


def _said(stake: Stake, grant: Grant, is_changing: bool) -> list[Action]:
    """What there is to say of a job: it holds or waits; it will be late; its money is short."""
    job, wish, said = stake.job, stake.wish, []
    if not grant.pools:
        said.append(Action(kind=ActionKind.QUEUE, subject=job.id, why=grant.why))
    elif not is_changing:
        said.append(Action(kind=ActionKind.HOLD, subject=job.id, why=grant.why))
    if wish.late_s > 0:
        why = f"its deadline cannot be met: at least {wish.late_s / 60:.1f} min late{_way(stake)}"
        why += f"; {wish.why}"
        said.append(Action(kind=ActionKind.LATE, subject=job.id, why=why))
    if wish.short_usd > 0:
        why = f"{wish.short_usd:.4f} USD more are needed than its budget has; {wish.why}"
        said.append(Action(kind=ActionKind.SHORT, subject=job.id, why=why))
    return said


def _way(stake: Stake) -> str:
    """What the work that is left costs on what a late job was given: the fastest, then cheapest."""
    work_s = work_left_s(stake.site.ask, stake.workers)
    if not stake.pools or work_s is None:
        return ""
    pools = stake.site.supply.pools
    places = ", ".join(f"{count} x {pool}" for pool, count in stake.pools.items())
    if any(pools[pool].view.price_usd_per_hour is None for pool in stake.pools):
        return f" on {places}"
    usd = sum(count * pools[pool].price for pool, count in stake.pools.items()) * work_s / 3600
    return f" on {places}, for {usd:.4f} USD"


def _give(stake: Stake, supply: Supply, shares: Shares, purse: Purse) -> None:
    """What it holds of its wish and what it must have on top: all of that, or nothing new."""
    site, wish = stake.site, stake.wish
    holds = {pool: len(hosts) for pool, hosts in site.holds.items()}
    if wish.pools == holds:
        stake.pools = holds
        shares.add(stake.job.terms.tenant, site.ask.resources, stake.workers)
        return
    kept = {p: min(n, holds[p]) for p, n in wish.pools.items() if p in holds}
    needs = dict(wish.pools)
    if not _must_be_whole(stake.job) and wish.domain is not None:
        held = sum(n * site.fits[pool] for pool, n in kept.items())
        markets = frozenset(supply.pools[pool].view.market for pool in wish.pools)
        if held >= stake.least:
            needs = kept
        else:
            needs = dict(site.fill(wish.domain, stake.least, markets).pools)
    more = {p: n - kept.get(p, 0) for p, n in needs.items() if n > kept.get(p, 0)}
    if not more:
        pass
    elif purse.affords(stake.job, more):
        for pool, count in more.items():
            kept[pool] = kept.get(pool, 0) + supply.add(supply.pools[pool], count, stake.job.id)
        purse.spend(stake.job, more)
    else:
        stake.wish = replace(wish, why=f"its budget does not reach for more; {wish.why}")
    stake.pools = {pool: count for pool, count in kept.items() if count}
    shares.add(stake.job.terms.tenant, site.ask.resources, stake.workers)


def _must_be_whole(job: JobView) -> bool:
    """Whether a job gets all it wants in its first turn: a deadline needs it."""
    return job.terms.deadline is not None


def _grow(stakes: Iterable[Stake], supply: Supply, shares: Shares, purse: Purse) -> None:
    """What is left, one node at a time, to the smallest share."""
    hungry = {
        stake.job.id: stake
        for stake in stakes
        if stake.pools and not _must_be_whole(stake.job) and stake.workers < stake.wish.size
    }
    turns = Turns([stake.job for stake in hungry.values()], shares)
    for job in turns:
        stake = hungry[job.id]
        stock = _next_pool(stake, purse)
        if stock is None:
            continue
        name, needs = stock.view.name, stake.site.ask.resources
        has = stake.pools.get(name, 0)
        if len(stake.site.holds.get(name, ())) <= has:
            if not supply.add(stock, 1, job.id):
                continue
            purse.spend(job, {name: 1})
        stake.pools[name] = has + 1
        shares.add(job.terms.tenant, needs, stake.site.fits[name])
        if stake.workers < stake.wish.size:
            turns.again(job)


def _next_pool(stake: Stake, purse: Purse) -> PoolStock | None:
    site = stake.site
    if stake.wish.domain is None:
        return None
    markets, job = ALLOWED[stake.job.terms.market], stake.job.id
    wished: PoolStock | None = None
    more: PoolStock | None = None
    for stock, _ in site.domains[stake.wish.domain]:
        name = stock.view.name
        given = stake.pools.get(name, 0)
        if stock.view.market not in markets:
            continue
        if len(site.holds.get(name, ())) <= given and not purse.affords(stake.job, {name: 1}):
            continue
        if site.supply.has(job, name) > given:
            return stock  # what it has, and what is on its way to it, before anything new
        if (wished and more) or site.supply.could(stock, job) <= given:
            continue
        more = more or stock
        if given < stake.wish.pools.get(name, 0):
            wished = wished or stock
    return wished or more


def _totals(view: FleetView) -> dict[str, float]:
    """All that the fleet could ever have, by resource."""
    totals: dict[str, float] = {}
    for pool in view.pools:
        for name, amount in pool.resources.items():
            totals[name] = totals.get(name, 0.0) + amount * pool.max_hosts
    return totals
