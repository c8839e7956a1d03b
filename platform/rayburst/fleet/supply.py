"""What there is to give, pool by pool, while one plan is made. Pure: it changes only itself.

    supply = Supply(view)
    supply.hold("job-1", hosts)             # what a job has already
    supply.could(pool, "job-1")             # nodes of this pool that it could have at most
    supply.add(pool, 2, "job-1")            # free ones, then those on their way, then launches

Every look is by pool, so that a plan costs one pass over the nodes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from typing import Any

from rayburst.fleet.fitting import Fitting
from rayburst.fleet.job_state import ZoneNow
from rayburst.fleet.spread import Crowd
from rayburst.fleet.stock import PoolStock, hit_lately, rank, rest, unused
from rayburst.fleet.view import FleetView, NodeState, NodeView, PoolView

BUDGET_LAG_S = 3.0
"""How long a decision may take to reach a host: two ticks and the host's own poll."""


class Supply:
    """Hosts, free and held, and what may still be launched. Order of pools: see `rank`."""

    def __init__(self, view: FleetView, occupied: Collection[str] = ()) -> None:
        self.view = view
        hit = hit_lately(view.pools, view.now)
        self.pools = {
            pool.name: PoolStock(pool, rank(pool, hit), promised=pool.promised)
            for pool in view.pools
        }
        self.crowd = Crowd(view.pools)
        self.node: dict[str, NodeView] = {}
        self.held: dict[str, dict[str, list[str]]] = {}
        """Job -> pool -> hosts."""
        self.coming: dict[str, dict[str, int]] = {}
        """Job -> pool -> nodes it was given in this plan that are no hosts yet."""
        self._kept: dict[str, dict[str, int]] = {}
        """Job -> pool -> promised nodes that it was granted before, until it takes them."""
        self._has_of: dict[str, Mapping[str, int]] = {}
        self._holder: dict[str, str] = {}
        self._usd_per_hour = 0.0
        self._shortest_usd = 0.0
        for node in view.nodes:
            host = node.host
            stock = self.pools.get(node.pool)
            if stock is None:
                continue
            stock.nodes.append(node)
            self.node[host] = node
            if node.state is NodeState.DRAINING:
                stock.draining.append(node)
            elif host in occupied:
                stock.leaving.append(host)
            elif unused(node):
                stock.free.append(host)
        for stock in self.pools.values():
            stock.free.reverse()  # taken from the end: those that were asked for first
            self._usd_per_hour += stock.price * (len(stock.nodes) + stock.promised)
            there = len(stock.nodes) - len(stock.draining) + stock.promised
            self.crowd.add(stock.view.name, there)
        self.order = sorted(self.pools.values(), key=lambda stock: stock.rank)
        self._changes: Counter[str] = Counter()
        """How often something was given in a domain; "" is in any."""
        self._closed: dict[str, str | None] = {}
        self.resting = {p.name: why for p in view.pools if (why := _rests(p, view.now))}
        """Pools that are closed for a while, and why."""
        self._fitting: dict[object, Fitting] = {}
        self.slowest_start_s = max((pool.start_s for pool in view.pools), default=0.0)
        self.in_vain: set[object] = set()
        """Questions that found nothing: within one plan there is never more again."""
        self.zones: dict[object, list[ZoneNow]] = {}
        """Spot zones as the first job of a kind saw them in this plan."""
        self.offers: dict[object, tuple[int, Any]] = {}
        """What jobs that have nothing would get, with the `state_of` the domain."""

    def fitting(self, resources: Mapping[str, float], span_any: bool) -> Fitting:
        """Where workers that take `resources` fit; equal resources get the same object."""
        asked = (span_any, *resources.items())
        found = self._fitting.get(asked)
        if found is None:
            key = (span_any, *sorted(resources.items()))
            found = self._fitting.get(key) or Fitting(self.order, resources, span_any=span_any)
            self._fitting[asked] = self._fitting[key] = found
        return found

    def hold(self, job: str, hosts: Collection[str]) -> None:
        """Say that a job has these hosts; those that are gone or drain are left out."""
        node_of, holder, draining = self.node, self._holder, NodeState.DRAINING
        pools = self.held.get(job, {})
        pool, mine = "", []
        for host in hosts:
            node = node_of.get(host)
            if node is None or node.state is draining or host in holder:
                continue
            holder[host] = job
            if node.pool != pool:  # most have all their hosts in one
                pool = node.pool
                mine = pools.setdefault(pool, [])
            mine.append(host)
        if pools:
            self.held[job] = pools

    def keep(self, job: str, granted: Mapping[str, int]) -> None:
        """After the `hold`s: hosts that were launched for a job's grant are its own as they come.

        Otherwise a job that comes first in the next plan would take them, and this one ask again.
        """
        for pool in [name for name in granted if name in self.pools]:  # in one order everywhere
            stock = self.pools[pool]
            missing = granted[pool] - len(self.holds(job).get(pool, ()))
            if missing > 0 and stock.arriving is None:
                stock.arriving = [h for h in stock.free if self._is_new(h)]
            while missing > 0 and stock.arriving:
                self._give(job, pool, stock.arriving.pop())
                missing -= 1
            if kept := max(min(missing, stock.promised), 0):
                stock.promised -= kept
                self._kept.setdefault(job, {})[pool] = kept

    def _is_new(self, host: str) -> bool:
        return self.node[host].state is NodeState.LAUNCHING and host not in self._holder

    def settle(self) -> None:
        """After the last `hold` and `keep`: what is held is not free."""
        for stock in self.pools.values():
            stock.free = [host for host in stock.free if host not in self._holder]
            stock.leaving = [host for host in stock.leaving if host not in self._holder]

    def unsettle(self) -> None:
        """After the last job: promised nodes that none of them took are for anybody."""
        for pools in self._kept.values():
            for pool, count in pools.items():
                self.pools[pool].promised += count
        self._kept.clear()
        self._has_of.clear()

    def has(self, job: str, pool: str) -> int:
        """Hosts of a pool that a job has, and nodes on their way to it."""
        held, count = self.held.get(job), 0
        if held is not None:
            count = len(held.get(pool, ()))
        for by in (self._kept, self.coming):
            if job in by:
                count += by[job].get(pool, 0)
        return count

    def has_of(self, job: str) -> Mapping[str, int]:
        """Pool -> hosts and nodes on their way, for the pools of which a job has any."""
        found = self._has_of.get(job)
        if found is None:
            pools = [p for by in (self.held, self._kept, self.coming) for p in by.get(job, ())]
            found = {pool: count for pool in pools if (count := self.has(job, pool))}
            self._has_of[job] = found
        return found

    def state_of(self, domain: str) -> int:
        """A number that is another one after anything was given in a domain ("" is all)."""
        return self._changes["" if self.view.budget_usd is not None else domain]

    def _changed(self, stock: PoolStock) -> None:
        self._changes[stock.view.domain] += 1
        self._changes[""] += 1

    def holds(self, job: str) -> dict[str, list[str]]:
        """Pool -> hosts of a job."""
        return self.held.get(job, {})

    def closed(self, pool: PoolView) -> str | None:
        """Why nothing may be launched in a pool now; None when it may."""
        if pool.name not in self._closed:
            self._closed[pool.name] = self.resting.get(pool.name) or _never_opens(pool, self.view)
        if (why := self._closed[pool.name]) is not None:
            return why
        return self.over_budget(pool)

    def over_budget(self, more: PoolView | None = None) -> str | None:
        """Why no more may be spent, with the drain of all that lives reserved; None when it may.

        A host that costs nothing is never too dear.
        """
        view = self.view
        if view.budget_usd is None:
            return None
        price = (more.price_usd_per_hour or 0.0) if more else 0.0
        rate = self._usd_per_hour + price
        reserve = rate * (view.drain_s + BUDGET_LAG_S) / 3600 + self._shortest_usd
        reserve += price * (more.shortest_paid_s if more else 0.0) / 3600
        if rate == 0 or view.spent_usd + reserve < view.budget_usd:
            return None
        return (
            f"{view.spent_usd:.4f} USD are spent and {reserve:.4f} USD are needed to drain, "
            f"of a budget of {view.budget_usd:.4f} USD"
        )

    def could(self, stock: PoolStock, job: str) -> int:
        """Nodes of a pool that a job could have at most: its own, free ones, launches."""
        own = self.has(job, stock.view.name)
        room = stock.room if stock.view.max_hosts > len(stock.nodes) else 0
        can_launch = room if room > 0 and self.closed(stock.view) is None else 0
        return own + len(stock.free) + stock.promised + can_launch

    def add(self, stock: PoolStock, count: int, job: str) -> int:
        """Give a job up to `count` more nodes: free ones, those on their way, launches."""
        self._changed(stock)
        self._has_of.pop(job, None)
        pool, kept = stock.view.name, self._kept.get(job, {})
        on_their_way = min(count, kept.get(pool, 0))
        if on_their_way:
            kept[pool] -= on_their_way
        given = 0
        while given + on_their_way < count and stock.free:
            self._give(job, pool, stock.free.pop())
            given += 1
        promised = min(count - given - on_their_way, stock.promised)
        stock.promised -= promised
        on_their_way += promised
        while given + on_their_way < count and self.launch(stock, _for(job)):
            on_their_way += 1
        if on_their_way:
            coming = self.coming.setdefault(job, {})
            coming[pool] = coming.get(pool, 0) + on_their_way
        return given + on_their_way

    def take_back(self, job: str) -> None:
        """Undo what a job was given that is no host yet; hosts it keeps."""
        self._has_of.pop(job, None)
        for pool, count in self.coming.pop(job, {}).items():
            stock = self.pools[pool]
            self._changed(stock)
            for _ in range(count):
                if _for(job) in stock.launches:
                    stock.launches.remove(_for(job))
                    self._count_launch(stock, -1)
                else:
                    stock.promised += 1

    def launch(self, stock: PoolStock, for_whom: str) -> bool:
        """Note one more node to launch; False when the pool is full or closed."""
        if stock.room <= 0 or self.closed(stock.view) is not None:
            return False
        self._changed(stock)
        stock.launches.append(for_whom)
        self._count_launch(stock, 1)
        return True

    def _count_launch(self, stock: PoolStock, count: int) -> None:
        self.crowd.add(stock.view.name, count)
        self._usd_per_hour += count * stock.price
        self._shortest_usd += count * stock.price * stock.view.shortest_paid_s / 3600

    def _give(self, job: str, pool: str, host: str) -> None:
        self._holder[host] = job
        self.held.setdefault(job, {}).setdefault(pool, []).append(host)


def _for(job: str) -> str:
    return f"job {job}"


def _rests(pool: PoolView, now: float) -> str | None:
    """Why a pool that failed is closed; the text stays the same until it fails again."""
    if not pool.failures or now >= (closed := rest(pool)).until:
        return None
    until = datetime.fromtimestamp(closed.until, UTC).strftime("%H:%M:%S")
    times = "a launch" if closed.attempts == 1 else f"{closed.attempts} launches in a row"
    return f"{pool.name} is closed until {until} UTC after {times} failed: {pool.failed_why}"


def _never_opens(pool: PoolView, view: FleetView) -> str | None:
    if view.budget_usd is not None and pool.price_usd_per_hour is None:
        return f"{pool.name} has no known price and the fleet has a budget"
    return None
