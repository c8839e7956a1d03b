"""From what a job holds to what it should have, without a gap. Pure.

    grant, actions = change_over(stake, supply)

A job that grows gets each new host as it comes. A job that moves keeps what it runs on until all of
the new place is up: only then does its grant change and do the old hosts get notice (make before
break). Training then saves, leaves and starts on the new hosts: a move is always at a checkpoint.

Coming home is a move that must pay: twice the money that the overlap and the restart cost.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from rayburst.fleet.jobs import HOME, JobView, changeover_s, work_left_s
from rayburst.fleet.live import REPAYS, move_s, spare_s
from rayburst.fleet.site import Site, Wish
from rayburst.fleet.spec import Market
from rayburst.fleet.supply import Supply
from rayburst.fleet.view import Action, ActionKind, NodeState
from rayburst.train.grants import Grant


@dataclass(slots=True)
class Stake:
    """One job while a plan is made: its wish, and the nodes by pool that it was given."""

    site: Site
    wish: Wish
    pools: dict[str, int] = field(default_factory=dict)
    yields: set[str] = field(default_factory=set)
    """Hosts that it must leave to another job: they stay."""

    @property
    def job(self) -> JobView:
        return self.site.job

    @property
    def is_homebound(self) -> bool:
        """Whether it has owned hosts beside those that it is given: a move home has begun."""
        pools = self.site.supply.pools
        return any(
            pools[pool].view.market is Market.ON_PREM and pool not in self.pools
            for pool in self.site.supply.has_of(self.job.id)
        )

    @property
    def least(self) -> int:
        """The workers that it must have at least: its least, or its floor."""
        return max(self.site.least, min(self.job.terms.floor, self.site.ask.most))

    @property
    def workers(self) -> int:
        fits = self.site.fits
        return sum([n * fits[pool] for pool, n in self.pools.items()])


def change_over(stake: Stake, supply: Supply) -> tuple[Grant, list[Action]]:
    """The grant that leads from what a job holds to what it was given, and what is done for it."""
    holds = supply.holds(stake.job.id)
    new: list[str] = []
    surplus: list[str] = []
    coming = 0
    for pool in dict.fromkeys((*stake.pools, *holds)):
        hosts, count = holds.get(pool, []), stake.pools.get(pool, 0)
        new += hosts[:count]
        surplus += hosts[count:]
        coming += count - len(hosts[:count])
    why = stake.wish.why
    if not [host for host in surplus if host not in stake.yields]:
        return Grant(hosts=tuple(new), pools=stake.pools, why=why), []
    is_up = all(supply.node[host].state is NodeState.RUNNING for host in new)
    if stake.pools and (coming or not is_up):
        running = set(stake.job.grant.hosts if stake.job.grant else ()) | set(surplus)
        text = f"{_places(stake.pools)} instead of {len(surplus)} host(s) when they are up: {why}"
        grant = Grant(
            hosts=tuple(h for h in (*new, *surplus) if h in running),
            coming=tuple(h for h in new if h not in running),
            pools=stake.pools,
            why=text,
        )
        return grant, [Action(kind=ActionKind.MOVE, subject=stake.job.id, why=text)]
    grant = Grant(hosts=tuple(new), pools=stake.pools, why=why)
    return grant, _drains(stake, supply, surplus, why)


def _drains(stake: Stake, supply: Supply, surplus: list[str], why: str) -> list[Action]:
    """Notice to hosts that are paid for by the hour; owned ones only become free."""
    return [
        Action(kind=ActionKind.DRAIN, subject=host, why=f"job {stake.job.id} leaves it: {why}")
        for host in surplus
        if host not in stake.yields
        and supply.pools[supply.node[host].pool].view.market is not Market.ON_PREM
    ]


def homeward(stake: Stake) -> Wish | None:
    """The place at home that repays coming home; None where there is none or it does not pay."""
    site, job = stake.site, stake.job
    if not stake.pools or stake.yields:  # what it leaves to another is no home of its own
        return None
    if all(site.supply.pools[pool].view.market is Market.ON_PREM for pool in stake.pools):
        return None
    home = site.best(stake.workers, HOME)
    work = work_left_s(site.ask, home.workers) if home.workers else None
    if work is None or home.domain is None:
        return None
    if home.workers < stake.workers:
        return None
    if job.terms.deadline is not None and spare_s(site, home.workers) < 2 * move_s(site):
        return None
    saved = (stake.wish.usd_per_hour - home.usd_per_hour) * work
    overlap_s = move_s(site) - changeover_s(site.ask)
    restart_s = changeover_s(site.ask) + (site.ask.checkpoint_s or 0.0)
    cost = stake.wish.usd_per_hour * (overlap_s + restart_s)
    if saved <= REPAYS * cost:
        return None
    why = (
        f"home saves {saved / 3600:.2f} USD over {work / 3600:.2f} h of work left and costs "
        f"{cost / 3600:.2f} USD to reach"
    )
    return replace(home, why=why, size=stake.wish.size, late_s=stake.wish.late_s)


def _places(pools: dict[str, int]) -> str:
    return ", ".join(f"{count} x {pool}" for pool, count in pools.items())
