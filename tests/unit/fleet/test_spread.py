"""Spot is spread by price, lasting and what would be lost together; gangs where that pays."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import replace

import pytest
from fleet_world import World, WorldJob, pool
from hypothesis import given, settings
from hypothesis import strategies as st

from rayburst.fleet.hazards import BINS, Hazards
from rayburst.fleet.jobs import Terms
from rayburst.fleet.packing import Request
from rayburst.fleet.planner import plan_fleet
from rayburst.fleet.spec import Market
from rayburst.fleet.split import Offer, split
from rayburst.fleet.spread import FEW, Crowd, deviation, together
from rayburst.fleet.stock import PoolStock, lasts_s, rank
from rayburst.fleet.view import ActionKind, Demand, FleetView, NodeState, NodeView, PoolView

HOUR = 3600.0
CPU = Request(resources={"CPU": 1})


def spot(name: str, price: float = 1.0, *, most: int = 100, domain: str = "", **more) -> PoolView:
    return pool(name, Market.SPOT, price, most=most, domain=domain, **more)


def lasting(seconds: float):
    from rayburst.fleet.view import SpotRates

    rates = (1 / seconds,) * BINS
    return SpotRates(up=True, age_s=HOUR, hazards=Hazards(up=rates, down=rates))


def launched(pools: list[PoolView], count: int, nodes: tuple[NodeView, ...] = ()) -> Counter:
    view = FleetView(now=1000.0, idle_timeout_s=60.0, pools=pools, nodes=nodes)
    plan = plan_fleet(view, Demand(requests=[CPU] * count))
    assert not [a for a in plan.actions if a.kind is ActionKind.UNMET]
    return Counter({a.subject: a.count for a in plan.actions if a.kind is ActionKind.LAUNCH})


def busy(name: str, pool: str) -> NodeView:
    return NodeView(
        host=name, pool=pool, state=NodeState.RUNNING, total={"CPU": 1.0}, available={"CPU": 0.0}
    )


def test_many_hosts_are_spread_where_a_second_pool_is_little_dearer_and_few_are_not():
    pools = [spot("a", 1.0), spot("b", 1.02)]
    assert launched(pools, FEW) == {"a": FEW}
    found = launched(pools, 40)
    assert found["a"] + found["b"] == 40
    assert 0.3 <= found["b"] / 40 <= 0.5
    assert launched([spot("a", 1.0), spot("b", 1.5)], 40) == {"a": 40}


def test_hosts_that_live_count_and_the_plan_says_why_a_dearer_pool_was_opened():
    living = tuple(busy(f"a-{i}", "a") for i in range(20))
    pools = [spot("a", 1.0), spot("b", 1.05)]
    view = FleetView(now=1000.0, idle_timeout_s=60.0, pools=pools, nodes=living)
    (launch,) = plan_fleet(view, Demand(requests=[CPU] * 3)).actions
    assert (launch.subject, launch.count) == ("b", 3)
    assert "lost together" in launch.why


def test_what_is_taken_together_is_no_second_place():
    for other, is_spread in (
        ({"domain": "z", "family": "m6i"}, False),
        ({"domain": "z", "family": "c7g"}, True),
        ({"domain": "y", "family": "m6i"}, True),
        ({"domain": "y", "family": "c7g"}, True),
    ):
        pools = [spot("a", 1.0, domain="z", family="m6i"), spot("b", 1.001, **other)]
        assert (launched(pools, 40)["b"] > 0) is is_spread, other
    apart = [spot("a", domain="z"), spot("b", 1.05, domain="y")]
    zone = [spot("a", domain="z"), spot("b", 1.05, domain="z")]
    assert launched(apart, 40)["b"] > launched(zone, 40)["b"] > 0


def test_a_pool_whose_like_was_hit_lately_ranks_last_with_it():
    hit = spot("a", 0.8, domain="z", family="m6i", interrupted_at=995.0)
    like, other = spot("b", 0.9, domain="z", family="m6i"), spot("c", 1.0, domain="z", family="c7g")
    assert launched([hit, like, other], 3) == {"c": 3}
    assert launched([replace(hit, interrupted_at=900.0), like, other], 3) == {"a": 3}


def test_a_market_that_hardly_ever_takes_hosts_is_filled_by_price():
    pools = [spot("a", 1.0, spot=lasting(1e7)), spot("b", 1.02, spot=lasting(1e7))]
    assert launched(pools, 40) == {"a": 40}


price, zone, kind = st.floats(0.9, 1.2), st.sampled_from("xyz"), st.sampled_from(["m6i", "c7g", ""])
markets = st.lists(
    st.tuples(price, zone, kind, st.integers(0, 30), st.floats(600, 1e6)), min_size=1, max_size=6
).map(
    lambda found: [
        spot(f"p{i}", usd, domain=z, family=k, most=most, spot=lasting(s))
        for i, (usd, z, k, most, s) in enumerate(found)
    ]
)


@settings(max_examples=15)
@given(markets, st.integers(1, 60))
def test_every_host_is_where_it_counts_least_and_none_comes_or_goes_after(pools, count):
    count = min(count, sum(p.max_hosts for p in pools))
    found = launched(pools, count)
    assert found.total() == count
    crowd = Crowd(pools)
    stocks = [PoolStock(p, rank(p)) for p in pools]
    for name, hosts in found.items():
        crowd.add(name, hosts)
    counted = {s.view.name: crowd.counted(s) for s in stocks}
    with_room = [s.view.name for s in stocks if found[s.view.name] < s.view.max_hosts]
    for name, hosts in found.items():
        if hosts > 1 and count > 2 * FEW:  # the last one put there moved what it counts by a host
            step = 2 * counted[name] * 0.25 / (count + 1)
            assert counted[name] <= min((counted[n] for n in with_room), default=1e9) + step
    nodes = tuple(busy(f"{n}-{i}", n) for n, hosts in found.items() for i in range(hosts))
    assert launched(pools, 0, nodes) == {}


def offers(*pools: PoolView, most: int = 100, **has: int) -> list[Offer]:
    return [Offer(stock=PoolStock(p, rank(p)), has=has.get(p.name, 0), most=most) for p in pools]


A, B = spot("a", 1.0, domain="z"), spot("b", 1.01, domain="z")


def test_an_elastic_gang_is_split_where_the_rest_can_go_on_and_restarts_are_short():
    found = split(offers(A, B), 12, least=2, change_s=30.0)
    assert sum(found.values()) == 12 and 4 <= found["b"] <= 6
    assert split(offers(A, B), 12, least=12, change_s=30.0) == {"a": 12}, "no part of it can run"
    assert split(offers(A, B), 12, least=2, change_s=1200.0) == {"a": 12}, "restarts cost more"
    assert split(offers(A, spot("b", 1.2, domain="z")), 12, least=2, change_s=30.0) == {"a": 12}
    assert split(offers(A, B), FEW, least=1, change_s=30.0) == {"a": FEW}


def test_what_a_gang_has_is_kept_and_no_room_is_no_reason_to_stay_away():
    assert split(offers(A, B, a=12), 12, least=2, change_s=30.0) == {"a": 12}
    assert split(offers(A, B, b=12), 12, least=2, change_s=30.0) == {"b": 12}
    assert split(offers(A, B, most=7), 12, least=12, change_s=30.0) == {"a": 7, "b": 5}
    job = WorldJob("a", steps=1e9, least=1, most=12)
    pools = [replace(A, max_hosts=3), replace(B, max_hosts=3)]
    assert Counter(World(pools, {"a": job}).run(100).held("a")) == {"a": 3, "b": 3}


@settings(max_examples=25)
@given(
    st.floats(1.0, 1.3), st.floats(900, 1e5), st.floats(900, 1e5), st.integers(5, 16),
    st.integers(1, 5), st.floats(0, 600), st.sampled_from("zy"),
)  # fmt: skip
def test_two_pools_are_filled_as_well_as_any_choice_of_numbers_would(
    price, lasts_a, lasts_b, hosts, least, change_s, domain
):
    a = spot("a", 1.0, domain="z", spot=lasting(lasts_a), start_s=0.0)
    b = spot("b", price, domain=domain, spot=lasting(lasts_b), start_s=0.0)

    def cost(counts: tuple[int, int]) -> float:
        """The formula of `spread.py` and `split.py`, written out."""
        views = (a, b)
        paid = counts[0] + counts[1] * price
        risk = sum(
            n * m * together(p, q) * deviation(p) * deviation(q)
            for n, p in zip(counts, views, strict=True)
            for m, q in zip(counts, views, strict=True)
        )
        restarts = sum(
            (hosts - n) * 2 * change_s / lasts_s(p) for n, p in zip(counts, views, strict=True) if n
        )
        return paid + risk / 2 / hosts + restarts

    able = [(hosts, 0), *((n, hosts - n) for n in range(least, hosts - least + 1))]
    found = split(offers(a, b), hosts, least=least, change_s=change_s)
    chosen = (found.get("a", 0), found.get("b", 0))
    assert chosen in able
    assert cost(chosen) <= min(map(cost, able)) * 1.01


def test_a_gang_of_ten_lies_in_two_pools_of_its_zone_and_stays_as_it_is():
    pools = [replace(A, max_hosts=20), replace(B, max_hosts=20)]
    job = WorldJob("a", steps=1e9, least=2, most=10)
    world = World(pools, {"a": job}).run(300)
    held = Counter(world.held("a"))
    assert held["a"] + held["b"] == 10 and min(held.values()) >= 3
    assert "over 2 spot pools" in " ".join(a.why for p in world.plans for a in p.actions)
    assert [what for _, what, _ in world.log] == ["launched"] * 10
    gone = world.now + 30
    world.dry = lambda name, now: name == "a" and gone <= now < gone + 60
    before = job.starts
    world.run(35)
    assert set(world.held("a")) == {"b"}
    assert job.starts > before and job.hosts, "the rest goes on"


@pytest.mark.parametrize("deadline", [None, 20 * HOUR])
def test_many_small_jobs_do_not_all_lie_in_the_cheapest_zone(deadline):
    rates = lasting(20 * HOUR)
    pools = [spot(n, 1.0 + i / 200, most=40, spot=rates) for i, n in enumerate("abc")]
    pools.append(pool("cloud", Market.ON_DEMAND, 3.0, most=40))
    jobs = {
        f"j{i}": WorldJob(f"j{i}", steps=10 * HOUR, terms=Terms(deadline=deadline))
        for i in range(24)
    }
    world = World(pools, jobs).run(100)
    where = Counter(itertools.chain.from_iterable(world.held(j) for j in jobs))
    assert where.total() == 24
    assert max(where.values()) <= math.ceil(24 * 0.6)
    assert [what for _, what, _ in world.log] == ["launched"] * 24
