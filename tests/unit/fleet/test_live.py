"""The question that a live fleet puts to the deadline policy is the one that replay puts."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fleet_world import CPU, pool

from rayburst.fleet.deadline import DeadlinePolicy
from rayburst.fleet.job_state import JobMarketState, Runs, ZoneNow
from rayburst.fleet.jobs import JobView, Terms
from rayburst.fleet.live import REPAYS, market_state, wish_for
from rayburst.fleet.outlook import EVERY_S, Outlook
from rayburst.fleet.recorded import PRIOR
from rayburst.fleet.site import Site
from rayburst.fleet.spec import Market
from rayburst.fleet.supply import Supply
from rayburst.fleet.view import TICK_S, FleetView, NodeState, NodeView, PoolView, SpotRates
from rayburst.train.grants import Ask, Grant

HOUR = 3600.0
NOW = 100 * HOUR
RATES = SpotRates(up=True, age_s=2 * HOUR, hazards=PRIOR, other_up=0.5)
SPOT = pool("spot-a", Market.SPOT, 0.9731, domain="a", most=4, start_s=120.0, spot=RATES)
CLOUD = pool("cloud", Market.ON_DEMAND, 3.06, domain="a", most=4, start_s=120.0)


def site(*pools: PoolView, hosts: tuple[str, ...] = (), **terms: object) -> Site:
    ask = Ask(
        t=NOW,
        run="r",
        least=2,
        most=2,
        resources=CPU,
        hosts=hosts,
        steps_left=int(20 * HOUR),
        speeds={2: 1.0},
        changeover_s=60.0,
    )
    job = JobView(
        id="j",
        submitted_at=NOW - 10 * HOUR,
        terms=Terms(deadline=NOW + 30 * HOUR, **terms),
        ask=ask,
        grant=Grant(hosts=hosts),
    )
    nodes = [
        NodeView(
            host=host,
            pool=host.rsplit("-", 1)[0],
            state=NodeState.RUNNING,
            total=CPU,
            available={"CPU": 0.0},
        )
        for host in hosts
    ]
    view = FleetView(now=NOW, idle_timeout_s=60, pools=pools, nodes=nodes)
    supply = Supply(view, occupied=hosts)
    supply.hold("j", hosts)
    supply.settle()
    return Site(job, ask, supply, span_any=False)


def test_the_state_is_that_of_the_gang_in_its_markets():
    expected = JobMarketState(
        work_left_s=20 * HOUR,
        time_left_s=30 * HOUR,
        horizon_s=40 * HOUR,
        changeover_s=180.0,
        tick_s=TICK_S,
        zones=[
            ZoneNow(
                name="a",
                up=True,
                age_s=2 * HOUR,
                usd_per_hour=2 * 0.9731,
                hazards=PRIOR,
                other_up=0.5,
            )
        ],
        on_demand_usd_per_hour=2 * 3.06,
    )
    assert market_state(site(SPOT, CLOUD), 2, None) == expected
    on_spot = site(SPOT, CLOUD, hosts=("spot-a-1", "spot-a-2"))
    assert market_state(on_spot, 2, None) == replace(expected, runs=Runs.SPOT, zone="a")
    dear = market_state(site(SPOT, CLOUD, hosts=("cloud-1", "cloud-2")), 2, 7.5)
    assert dear == replace(expected, runs=Runs.ON_DEMAND, budget_left_usd=7.5)


def test_a_closed_spot_pool_is_down_and_what_the_policy_says_is_done():
    closed = replace(SPOT, failures=(NOW - 1,), failed_why="no capacity")
    for pools in ((SPOT, CLOUD), (closed, CLOUD)):
        asked = site(*pools)
        state = market_state(asked, 2, None)
        assert state is not None and state.zones[0].up is (pools[0] is SPOT)
        decision = DeadlinePolicy().decide(state)
        wish = wish_for(site(*pools), DeadlinePolicy(), left_usd=None)
        expected = {Runs.SPOT: {"spot-a": 2}, Runs.ON_DEMAND: {"cloud": 2}, Runs.IDLE: {}}
        assert wish.pools == expected[decision.action]
        assert wish.why.startswith(decision.why)
        assert ("is closed until" in wish.why) is (pools[0] is closed and not wish.pools)


def test_without_prices_spot_is_used_until_time_presses():
    unknown = replace(CLOUD, price_usd_per_hour=None)
    wish = wish_for(site(SPOT, unknown), DeadlinePolicy(), left_usd=None)
    assert wish.pools == {"spot-a": 2}
    assert "a price is unknown" in wish.why


def test_an_outlook_learns_from_what_happens_to_pools():
    outlook = Outlook(["a", "b"])
    now = 0.0
    for minute in range(600):
        now = minute * 60.0
        outlook.observe(now, {"b"} if minute % 20 < 10 else set())
    rates = outlook.rates()
    assert rates["a"].up and rates["a"].age_s == pytest.approx(now, abs=2 * EVERY_S)
    assert rates["b"].age_s < 11 * 60
    assert outlook.together is not None
    assert Outlook([]).rates() == {}


def elastic(holds: int, *, left_s: float, speeds: dict[int, float]) -> Site:
    """A job of one to four workers without a deadline; `left_s` at one step a second."""
    hosts = tuple(f"spot-a-{number}" for number in range(holds))
    there = site(replace(SPOT, start_s=30.0), hosts=hosts)
    ask = replace(there.ask, least=1, most=4, steps_left=int(left_s), speeds=speeds)
    job = replace(there.job, terms=Terms(), ask=ask)
    return Site(job, ask, there.supply, span_any=True)


def test_no_host_is_asked_for_by_work_that_ends_before_it_pays():
    """Work ends in 110 s on three; a fourth is there in 30 s and costs a restart of 60 s."""
    even = {3: 3.0}
    assert wish(elastic(3, left_s=330, speeds=even)).workers == 3
    assert wish(elastic(3, left_s=3300, speeds=even)).workers == 4
    assert wish(elastic(0, left_s=330, speeds=even)).workers == 4, "a start asks for its size"


def test_a_size_that_saves_less_than_the_restart_is_not_taken():
    """Four are no faster than three: leaving one saves its seconds and costs a restart of three."""
    flat = {3: 1.0, 4: 1.0}
    assert wish(elastic(4, left_s=60 * 3 * REPAYS - 1, speeds=flat)).workers == 4
    assert wish(elastic(4, left_s=60 * 3 * REPAYS + 1, speeds=flat)).workers == 3


def test_a_group_that_is_rebuilt_in_place_pays_for_a_change_what_the_last_one_took():
    def in_place(there: Site) -> Site:
        ask = replace(there.ask, stop_s=1.0)
        return Site(replace(there.job, ask=ask), ask, there.supply, span_any=True)

    grows = elastic(3, left_s=330, speeds={3: 3.0})
    assert (wish(grows).workers, wish(in_place(grows)).workers) == (3, 4)
    shrinks = elastic(4, left_s=60 * 3 * REPAYS - 1, speeds={3: 1.0, 4: 1.0})
    assert (wish(shrinks).workers, wish(in_place(shrinks)).workers) == (4, 3)


def wish(there: Site):
    return wish_for(there, DeadlinePolicy(), left_usd=None)
