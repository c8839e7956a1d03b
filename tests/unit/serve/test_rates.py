"""Rates over all replicas: never more than the bucket gives and one lease a replica."""

from __future__ import annotations

import asyncio
import random

import pytest
from pydantic import ValidationError

from rayburst.serve.options import TenantLimit
from rayburst.serve.rates import Desk, Lease, RateLimit, Rates

LIMIT = RateLimit(rate=20.0, burst=10.0)


class World:
    """Replicas and a desk on one clock; leases take `delay_s` to come. Events in order of time."""

    def __init__(self, replicas: int, limits: dict[str, RateLimit], delay_s: float = 0.004) -> None:
        self.now_s, self.delay_s = 100.0, delay_s
        self.desk: Desk | None = Desk()
        self.admitted: list[tuple[float, str]] = []
        self.refused: list[tuple[float, float]] = []
        self._limits = limits
        self._sleepers: list[tuple[float, asyncio.Future[None]]] = []
        self.replicas = [self.replica() for _ in range(replicas)]

    def replica(self) -> Rates:
        return Rates(self._limits, self._ask, clock=lambda: self.now_s)

    async def _ask(self, tenant: str, limit: RateLimit, wanted: int, unused: int) -> Lease:
        await self._sleep(self.delay_s / 2)
        if self.desk is None:
            raise ConnectionError("the actor is gone")
        lease = self.desk.lease("M", tenant, limit, wanted=wanted, unused=unused, now_s=self.now_s)
        await self._sleep(self.delay_s / 2)
        return lease

    async def _sleep(self, seconds: float) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sleepers.append((self.now_s + seconds, future))
        await future

    async def until(self, at_s: float) -> None:
        """Lets everything happen that is due by then."""
        while True:
            for _ in range(4):
                await asyncio.sleep(0)
            due = min((at for at, _ in self._sleepers), default=at_s)
            self.now_s = max(self.now_s, min(due, at_s))
            ready = [f for at, f in self._sleepers if at <= self.now_s]
            self._sleepers = [(at, f) for at, f in self._sleepers if at > self.now_s]
            if not ready:
                return
            for future in ready:
                future.set_result(None)

    def request(self, replica: Rates, tenant: str) -> None:
        def then(refusal):
            if refusal is None:
                self.admitted.append((self.now_s, tenant))
            else:
                assert refusal.status == 429
                self.refused.append((self.now_s, refusal.retry_after_s))

        replica.take(tenant, self.now_s, then)


def most_in_any_stretch(times: list[float], limit: RateLimit) -> float:
    """The largest excess over rate x stretch + burst."""
    excess = 0.0
    for first in range(len(times)):
        for last in range(first, len(times)):
            allowed = limit.rate * (times[last] - times[first]) + limit.burst
            excess = max(excess, last - first + 1 - allowed)
    return excess


@pytest.mark.parametrize("seed", range(6))
def test_over_admission_is_at_most_one_lease_a_replica_whoever_dies(seed):
    """A greedy tenant asks at random on four replicas; replicas and the desk die at random."""

    async def run():
        rng = random.Random(seed)
        world = World(4, {"greedy": LIMIT})
        for _ in range(600):
            await world.until(world.now_s + rng.expovariate(150))
            world.request(rng.choice(world.replicas), "greedy")
            if rng.random() < 0.01:  # with what it held
                world.replicas[rng.randrange(4)] = world.replica()
            if rng.random() < 0.005:
                world.desk = Desk(is_new=False)
        await world.until(world.now_s + 3)
        times = [at for at, _ in world.admitted]
        assert most_in_any_stretch(times, LIMIT) <= 4 * LIMIT.block
        assert len(world.admitted) + len(world.refused) >= 600 - 40  # a dead replica answers none
        assert len(world.refused) > 300, "the limit was never felt"

    asyncio.run(run())


def test_a_tenant_gets_its_whole_rate_and_its_burst_wherever_it_asks():
    async def run():
        world = World(3, {"ads": LIMIT})
        for n in range(1500):  # five times the rate for fifteen seconds
            await world.until(100 + n / 100)
            world.request(world.replicas[n % 3], "ads")
        await world.until(world.now_s + 3)
        assert len(world.admitted) >= 0.9 * 15 * LIMIT.rate

    asyncio.run(run())


def test_below_its_rate_a_tenant_is_never_refused():
    async def run():
        world = World(3, {"*": LIMIT})
        for n in range(300):
            await world.until(100 + n / 15)
            world.request(world.replicas[n % 3], "any")
        await world.until(world.now_s + 1)
        assert (len(world.admitted), world.refused) == (300, [])

    asyncio.run(run())


def test_each_unnamed_tenant_has_its_own_bucket_and_a_name_of_its_own_wins():
    async def run():
        slow = RateLimit(rate=1.0, burst=1.0)
        world = World(1, {"*": slow, "vip": RateLimit(rate=1000.0, burst=1000.0)})
        for tenant in ("a", "b", "a", "b", "vip", "vip", "vip"):
            world.request(world.replicas[0], tenant)
            await world.until(world.now_s + 0.05)
        assert sorted(t for _, t in world.admitted) == ["a", "b", "vip", "vip", "vip"]
        assert all(0.5 < wait <= 1.0 for _, wait in world.refused), "an honest Retry-After"

    asyncio.run(run())


def test_without_the_desk_a_limited_tenant_waits_and_is_told_so_and_others_do_not():
    async def run():
        world = World(1, {"ads": LIMIT})
        world.desk = None
        for tenant in ("ads", "free"):
            world.request(world.replicas[0], tenant)
        await world.until(world.now_s + 1)
        assert [t for _, t in world.admitted] == ["free"]
        assert [wait for _, wait in world.refused] == [1.0]
        world.desk = Desk(is_new=False)
        await world.until(world.now_s + 2)
        world.request(world.replicas[0], "ads")  # opens the account, which is empty
        await world.until(world.now_s + 1)
        world.request(world.replicas[0], "ads")
        await world.until(world.now_s + 1)
        assert [t for _, t in world.admitted] == ["free", "ads"]

    asyncio.run(run())


def test_a_burst_without_a_rate_is_refused_with_the_way_to_say_it():
    with pytest.raises(ValidationError, match="add rate="):
        TenantLimit(burst=5)
