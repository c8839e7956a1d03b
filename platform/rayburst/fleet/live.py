"""Where one job should run now: the deadline policy on a fleet's pools. Pure.

    wish = wish_for(site, policy, left_usd=None)
    wish.pools, wish.why

The same `DeadlinePolicy` that replay measures decides between spot, on-demand and waiting; here its
question is put together from pools: a zone is a domain with spot for the gang, its price is that of
the nodes the gang needs there. Above it stands what replay does not have: owned hosts come first
and are kept while the deadline allows, a floor, a market policy, the size of the gang.

It decides for one job. Who comes first is in `turns.py`, how hosts are swapped in `moves.py`.
"""

from __future__ import annotations

import math
from dataclasses import replace

from rayburst.fleet.deadline import DeadlinePolicy
from rayburst.fleet.job_state import Decision, JobMarketState, Runs, ZoneNow
from rayburst.fleet.jobs import (
    ALL,
    ALLOWED,
    HOME,
    USUAL,
    MarketPolicy,
    changeover_s,
    owed_s,
    resize_s,
    wanted_workers,
    work_left_s,
)
from rayburst.fleet.parts import longest_s, mixed, part, runs_in, whole_lasts_s
from rayburst.fleet.recorded import PRIOR
from rayburst.fleet.site import NOTHING, Site, Wish
from rayburst.fleet.spec import Market

REPAYS = 2.0
"""How many times its cost a move or a smaller size must save, so that a wrong guess costs little.
"""

ZONES = 6
"""Spot domains that are up which one decision looks at, of twice as many, the cheapest first."""

_SPOT = frozenset({Market.SPOT})
_ON_DEMAND = frozenset({Market.ON_DEMAND})
_DEAR = frozenset({Market.ON_PREM, Market.ON_DEMAND})


def wish_for(site: Site, policy: DeadlinePolicy, *, left_usd: float | None) -> Wish:
    """What a job should have now; `left_usd` is what it may still spend, drains reserved."""
    terms, size = site.job.terms, _size(site)
    if left_usd is not None and left_usd <= 0:
        wish = replace(NOTHING, why="its budget is spent", short_usd=max(-left_usd, 1e-4))
    elif (settled := site.settled(size, max(-spare_s(site, size), 0.0))) is not None:
        return settled
    elif terms.deadline is None or terms.market is not MarketPolicy.AUTO:
        wish = _usual(site, size)
    elif work_left_s(site.ask, size) is None:
        wish = _to_measure(site, size)
    else:
        wish = _by_deadline(site, size, policy, left_usd)
    if not wish.workers and not wish.short_usd and (resting := site.resting()):
        wish = wish.because(f"{wish.why}; {resting}")
    if len(wish.pools) > 1:
        wish = _telling_its_pools(site, wish)
    workers = size if wish.can_grow else wish.workers or size
    late_s = max(wish.late_s, -spare_s(site, workers), 0.0)
    if (wish.size, wish.late_s) == (size, late_s):
        return wish
    return replace(wish, size=size, late_s=late_s)


def _telling_its_pools(site: Site, wish: Wish) -> Wish:
    spot = [p for p in wish.pools if site.supply.pools[p].view.market is Market.SPOT]
    return wish.because(f"{wish.why}, over {len(spot)} spot pools") if len(spot) > 1 else wish


def _size(site: Site) -> int:
    """The workers to aim at: another size than it has only where that repays the change.

    Larger must take more time off the work left than the change costs, once the hosts are there (as
    the trainer decides, `resizing.py`); smaller must save node-seconds.
    """
    wanted, has = wanted_workers(site.job, site.supply.view.now), site.workers
    if wanted == has:
        return wanted
    then, now = work_left_s(site.ask, wanted), work_left_s(site.ask, has)
    if site.job.terms.deadline is not None or has < site.least or then is None or now is None:
        return wanted
    stop_s = resize_s(site.ask)
    if wanted > has:
        waited_s = site.supply.slowest_start_s
        pays = (now - waited_s) * (1 - then / now) > stop_s if now > 0 else False
    else:
        pays = has * now - wanted * then > REPAYS * wanted * stop_s
    return wanted if pays else min(has, site.ask.most)


def _usual(site: Site, size: int) -> Wish:
    """On-prem, then spot; on-demand for a floor, or where the terms say so."""
    terms = site.job.terms
    wish = site.best(size, ALLOWED[terms.market])
    if wish.workers < terms.floor and terms.market is not MarketPolicy.ON_PREM:
        floor = site.best(max(terms.floor, site.least), ALL)
        if floor.workers > wish.workers:
            why = f"a floor of {terms.floor} workers, and other markets have {wish.workers}"
            return replace(floor, why=why)
    if wish is NOTHING:
        return replace(wish, why=f"no domain has room for its {site.least} worker(s)")
    return replace(wish, size=size, why=f"{wish.workers} of {size} workers")


def _to_measure(site: Site, size: int) -> Wish:
    """Nobody knows yet how long the work takes: start where there is something, to measure it."""
    wish = site.best(size, USUAL)
    if wish is NOTHING:
        wish = site.best(site.least, ALL)
    return replace(wish, why=f"{wish.workers} of {size} workers, to measure how long the work is")


def _by_deadline(site: Site, size: int, policy: DeadlinePolicy, left_usd: float | None) -> Wish:
    home = site.best(size, HOME)
    if home is not NOTHING and not _pressed(site, home):
        spare = _h(spare_s(site, home.workers))
        return replace(home, size=size, why=f"{spare} to spare with {home.workers} workers at home")
    state = market_state(site, size, left_usd)
    if state is None:
        return _without_prices(site, size)
    decision = policy.decide(state)
    if size > 1 and not decision.late_s and not decision.short_usd:
        wish = _by_parts(site, size, decision, state)
        if wish is not NOTHING:
            return wish
    return _carried_out(site, size, decision, home)


def _by_parts(site: Site, size: int, decision: Decision, state: JobMarketState) -> Wish:
    """A gang on fewer spot hosts than it wants, or with on-demand beside them; else nothing.

    Work on a part of share s is done at the price of spot and uses up 1 - s of slack a second. A
    second of either is worth at most the difference between the markets, so a part of half the
    workers or more is as good as live spot: it is kept, and taken before on-demand, until time
    presses. A smaller one is used only while the policy waits. Where spot for all is up, the policy
    has weighed that; fewer hosts are another question only where they last clearly longer.
    """
    spare = state.time_left_s - state.work_left_s
    net_s, change_s = 2 * state.changeover_s + state.tick_s, changeover_s(site.ask)
    markets, presses = runs_in(site), spare < net_s
    if state.runs is Runs.SPOT or (presses and not markets & USUAL):
        return NOTHING
    whole_s = whole_lasts_s(site, size)
    longer_s = REPAYS * max(change_s, whole_s or 0.0)
    if whole_s is not None and not markets & USUAL and longest_s(site) < longer_s:
        return NOTHING
    some_s = REPAYS * change_s if markets and markets <= USUAL else longer_s
    some = None
    if size > site.least and not presses:
        some = part(site, size, at_least_s=some_s, repays=REPAYS)
    if some is not None:
        share = some.wish.workers / size
        burnt = state.tick_s * (1 - share) + (0.0 if some.runs else change_s)
        waits = decision.action is Runs.IDLE and whole_s is None
        if spare - burnt >= net_s and (waits or 2 * some.useful >= size):
            return some.wish.because(f"{decision.why}; {some.wish.why}")
    if decision.action is Runs.SPOT:
        return NOTHING
    if decision.action is Runs.IDLE and (some is None or spare - burnt >= net_s):
        return NOTHING
    least_s = longer_s if whole_s is not None else 0.0
    wish = mixed(site, size, at_least_s=least_s, can_restart=not presses)
    return wish.because(f"{decision.why}; {_beside(site, wish)}") if wish.workers else NOTHING


def _beside(site: Site, wish: Wish) -> str:
    pools = site.supply.pools
    spot = sum(n for pool, n in wish.pools.items() if pools[pool].view.market is Market.SPOT)
    return f"{spot} of {sum(wish.pools.values())} hosts on spot"


def _without_prices(site: Site, size: int) -> Wish:
    """Where spot and on-demand cannot be compared: spot, and on-demand when time presses."""
    wish = site.best(size, USUAL)
    if _pressed(site, wish):
        wish = site.best(size, ALL)
    return replace(wish, why="spot and on-demand cannot be compared: a price is unknown")


def _carried_out(site: Site, size: int, decision: Decision, home: Wish) -> Wish:
    """A decision as nodes of pools. What cannot be had falls back to what can."""
    wish, why = NOTHING, decision.why
    if decision.action is Runs.SPOT and decision.zone is not None:
        wish = site.fill(decision.zone, size, USUAL)
        if wish.workers < size and _pressed(site, wish) and not decision.short_usd:
            wish = site.fill(decision.zone, size, ALL)
            why += f"; {wish.workers} of {size} workers with on-demand, since time presses"
    elif decision.action is Runs.ON_DEMAND:
        wish = site.best(size, _DEAR)
    if wish.workers < size and decision.action is not Runs.IDLE:
        more = site.best(size, ALL)
        if more.workers > wish.workers:
            wish, why = more, f"{why}; there is no room for that, this is what there is"
    if wish.workers < site.least:
        wish = home
    return replace(wish, size=size, why=why, late_s=decision.late_s, short_usd=decision.short_usd)


def spare_s(site: Site, workers: int) -> float:
    """Time to the deadline that work and the changeover still owed leave over."""
    deadline = site.job.terms.deadline
    left = None if deadline is None else work_left_s(site.ask, workers)
    if left is None or deadline is None:
        return math.inf
    now = site.supply.view.now
    return deadline - now - left - owed_s(site.ask, now)


def _pressed(site: Site, wish: Wish) -> bool:
    """Whether staying with these workers puts the deadline at risk; told earlier from outside."""
    net_s = 2 * move_s(site) + site.supply.view.tick_s
    lives = wish.domain is not None and site.held_in(wish.domain, ALL) >= site.least
    return spare_s(site, wish.workers) < (net_s if lives else 1.5 * net_s)


def move_s(site: Site) -> float:
    """From asking for hosts to training on them."""
    return changeover_s(site.ask) + site.supply.slowest_start_s


def market_state(site: Site, size: int, left_usd: float | None) -> JobMarketState | None:
    """The job and its markets as the policy wants them; None where prices are not known."""
    job, now, tick_s = site.job, site.supply.view.now, site.supply.view.tick_s
    deadline, work = job.terms.deadline, work_left_s(site.ask, size)
    dear = _on_demand_usd(site, size)
    zones = _zones(site, size)
    if deadline is None or work is None or dear is None:
        return None
    runs, zone = _runs(site, zones, size)
    change_s = move_s(site)
    return JobMarketState(
        work_left_s=work,
        time_left_s=deadline - now,
        horizon_s=max(deadline - job.submitted_at, tick_s),
        changeover_s=change_s,
        tick_s=tick_s,
        zones=zones,
        on_demand_usd_per_hour=dear,
        runs=runs,
        owed_s=0.0 if runs is Runs.IDLE else _owed_s(site, change_s),
        zone=zone,
        together=(site.supply.view.together or PRIOR) if len(zones) > 1 else None,
        budget_left_usd=left_usd,
    )


def _on_demand_usd(site: Site, size: int) -> float | None:
    """The least that the gang would cost on-demand, by the hour; None: no known price."""
    cheapest = site.fitting.by_price(Market.ON_DEMAND)
    return next(iter(cheapest.values())) * size if cheapest else None


def _owed_s(site: Site, change_s: float) -> float:
    return owed_s(site.ask, site.supply.view.now) if site.ask.hosts else change_s


def _runs(site: Site, zones: list[ZoneNow], size: int) -> tuple[Runs, str | None]:
    """What it runs on: hosts at home alone are no market, so idle, and so is a part on spot."""
    for domain in site.lives_in():
        if site.held_in(domain, ALL) < site.least:
            continue
        if site.held_in(domain, _ON_DEMAND):
            return Runs.ON_DEMAND, None
        if not site.is_whole(domain, site.held_in(domain, ALL), size):
            continue
        if site.held_in(domain, _SPOT) and any(z.name == domain for z in zones):
            return Runs.SPOT, domain
    return Runs.IDLE, None


def _zones(site: Site, size: int) -> list[ZoneNow]:
    """Where it lives, and the cheapest domains with spot: enough to choose from.

    Jobs of a kind share one look at the domains. Those that come later in the plan may find less.
    """
    cheapest = site.fitting.by_price(Market.SPOT)
    lives = [domain for domain in site.lives_in() if domain in cheapest]
    kind = (site.fitting, site.least, size, site.supply.crowd.era)
    seen = site.supply.zones.get(kind)
    if seen is None:
        seen = site.supply.zones[kind] = _look(site, size, list(cheapest)[: 2 * ZONES])
    return [_zone(site, d, size) for d in lives] + [z for z in seen if z.name not in lives]


def _look(site: Site, size: int, domains: list[str]) -> list[ZoneNow]:
    zones: list[ZoneNow] = []
    for domain in domains:
        if len([zone for zone in zones if zone.up]) < ZONES:
            zones.append(_zone(site, domain, size))
    return zones


def _zone(site: Site, domain: str, size: int) -> ZoneNow:
    """A domain with spot. It is up where as many workers as fit it could be had now, some of them
    on spot."""
    stock, fit = next(
        one
        for one in site.domains[domain]
        if one[0].view.market is Market.SPOT and one[0].view.price_usd_per_hour
    )
    wish = site.fill(domain, size, USUAL)
    has_spot = any(site.supply.pools[pool].view.market is Market.SPOT for pool in wish.pools)
    rates = stock.view.spot
    return ZoneNow(
        name=domain,
        up=has_spot and site.is_whole(domain, wish.workers, size),
        age_s=rates.age_s if rates else 0.0,
        usd_per_hour=stock.price * math.ceil(size / fit),
        hazards=rates.hazards if rates else PRIOR,
        other_up=rates.other_up if rates else 0.5,
        dearer=site.supply.crowd.dearer(stock.view.name),
    )


def _h(seconds: float) -> str:
    return f"{seconds / 3600:.2f} h"
