"""The planner: on-prem first, then spot, on-demand only when named; caps never below what lives."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from rayburst.fleet.backoff import FIRST_S
from rayburst.fleet.hazards import BINS, Hazards
from rayburst.fleet.jobs import JobView
from rayburst.fleet.keeping import HOLD_S
from rayburst.fleet.packing import LabelRule, Request, RequestKind
from rayburst.fleet.planner import DRAIN_VISIBLE_S, plan_fleet, without_planned
from rayburst.fleet.spec import Market
from rayburst.fleet.supply import BUDGET_LAG_S
from rayburst.fleet.view import (
    ActionKind,
    Caps,
    Demand,
    FleetView,
    NodeState,
    NodeView,
    PoolView,
    SpotRates,
)
from rayburst.train.grants import Ask, Grant

NOW = 1_000.0
HOUR = 3600.0
CPU = Request(resources={"CPU": 1})
ON_DEMAND = LabelRule(key="rayburst.io/market", values=frozenset({"on-demand"}))


def pool(name: str, market: Market, price: float | None, most: int = 2, least: int = 0) -> PoolView:
    return PoolView(
        name=name,
        market=market,
        resources={"CPU": 1.0, "memory": 2e9},
        labels={"rayburst.io/market": str(market), "rayburst.io/pool": name},
        price_usd_per_hour=price,
        min_hosts=least,
        max_hosts=most,
    )


POOLS = (
    pool("cloud", Market.ON_DEMAND, 3.06),
    pool("spot-b", Market.SPOT, 0.95),
    pool("spot-a", Market.SPOT, 0.92),
    pool("rack", Market.ON_PREM, 0.35),
)


def node(host: str, state: NodeState = NodeState.RUNNING, **facts: float) -> NodeView:
    busy = facts.pop("busy", 0)
    return NodeView(
        host=host,
        pool=host.rsplit("-", 1)[0],
        state=state,
        total={"CPU": 1.0},
        available={"CPU": 0.0 if busy else 1.0},
        **facts,
    )


def view(*nodes: NodeView, pools: tuple[PoolView, ...] = POOLS) -> FleetView:
    return FleetView(now=NOW, idle_timeout_s=60.0, pools=pools, nodes=nodes)


def caps(fleet: FleetView, *requests: Request) -> dict[str, int]:
    return {k: v.max for k, v in plan_fleet(fleet, Demand(requests=requests)).caps.items()}


def test_all_pools_are_closed_without_demand():
    assert caps(view()) == {"cloud": 0, "spot-b": 0, "spot-a": 0, "rack": 0}


def test_on_prem_fills_first_then_the_cheapest_spot_and_never_on_demand():
    assert caps(view(), *[CPU] * 5) == {"rack": 2, "spot-a": 2, "spot-b": 1, "cloud": 0}
    plan = plan_fleet(view(), Demand(requests=[CPU] * 9))
    assert plan.caps["cloud"] == Caps(min=0, max=0)
    unmet = [a for a in plan.actions if a.kind is ActionKind.UNMET]
    assert [a.count for a in unmet] == [3]


def test_on_demand_opens_when_a_request_names_it_by_label():
    named = replace(CPU, selector=[ON_DEMAND])
    assert caps(view(), CPU, named) == {"rack": 1, "spot-a": 0, "spot-b": 0, "cloud": 1}


def test_a_negated_label_does_not_name_on_demand():
    not_spot = LabelRule(key="rayburst.io/market", values=frozenset({"spot"}), negated=True)
    not_cloud = replace(ON_DEMAND, negated=True)
    full = view(node("rack-1", busy=1), node("rack-2", busy=1))
    assert caps(full, replace(CPU, selector=[not_spot]))["cloud"] == 0
    assert caps(full, replace(CPU, selector=[not_cloud])) == {
        "rack": 2,
        "spot-a": 1,
        "spot-b": 0,
        "cloud": 0,
    }


def test_work_that_wants_spot_takes_another_node_where_spot_cannot_be_had():
    spot = LabelRule(key="rayburst.io/market", values=frozenset({"spot"}))
    wants = replace(CPU, selector=[spot], or_else=[()])
    assert caps(view(), *[wants] * 2) == {"rack": 0, "spot-a": 2, "spot-b": 0, "cloud": 0}
    assert caps(view(), *[wants] * 9) == {"rack": 2, "spot-a": 2, "spot-b": 2, "cloud": 0}
    assert caps(view(node("rack-1")), wants) == {"rack": 1, "spot-a": 0, "spot-b": 0, "cloud": 0}
    only = replace(wants, or_else=())
    assert caps(view(), *[only] * 9) == {"rack": 0, "spot-a": 2, "spot-b": 2, "cloud": 0}


def test_work_that_fits_a_launching_node_opens_nothing_more():
    assert caps(view(node("rack-1", NodeState.LAUNCHING)), CPU)["rack"] == 1


def test_a_standing_request_counts_busy_nodes_and_a_task_does_not():
    busy = view(node("rack-1", busy=1))
    assert caps(busy, replace(CPU, kind=RequestKind.FLOOR))["rack"] == 1
    assert caps(busy, CPU)["rack"] == 2


def test_draining_nodes_serve_nothing_and_stay_under_the_cap_until_ray_has_seen_them():
    fresh = node("spot-a-1", NodeState.DRAINING, draining_since=NOW - 1)
    seen = node("spot-a-1", NodeState.DRAINING, draining_since=NOW - DRAIN_VISIBLE_S - 1)
    full = (node("rack-1", busy=1), node("rack-2", busy=1))
    assert caps(view(*full, fresh))["spot-a"] == 1
    assert caps(view(*full, seen))["spot-a"] == 0
    assert caps(view(*full, seen), CPU)["spot-a"] == 1
    assert caps(view(*full, seen), *[CPU] * 3) == {
        "rack": 2,
        "spot-a": 1,  # two hosts at most, the draining one included
        "spot-b": 2,
        "cloud": 0,
    }


def test_a_pool_that_failed_is_closed_for_a_while_and_the_next_opens():
    failed = tuple(
        replace(p, failures=(NOW - 1,), failed_why="no capacity") if p.name == "rack" else p
        for p in POOLS
    )
    assert caps(view(pools=failed), CPU) == {"rack": 0, "spot-a": 1, "spot-b": 0, "cloud": 0}
    healed = tuple(replace(p, failures=(NOW - FIRST_S,)) for p in POOLS)
    assert caps(view(pools=healed), CPU)["rack"] == 1


def test_a_pool_that_was_interrupted_lately_comes_after_its_neighbours():
    pools = tuple(
        replace(p, interrupted_at=NOW - 5) if p.name == "spot-a" else p
        for p in POOLS
        if p.name != "rack"
    )
    assert caps(view(pools=pools), CPU) == {"spot-a": 0, "spot-b": 1, "cloud": 0}


def test_unknown_prices_come_last_in_their_market():
    pools = (pool("mystery", Market.SPOT, None), pool("known", Market.SPOT, 9.0))
    assert caps(view(pools=pools), CPU) == {"mystery": 0, "known": 1}


def test_a_spot_pool_that_lasts_comes_before_one_that_is_little_cheaper():
    """Starts of 300 s: one ends every hour, the other every ten hours; 5% are not worth that."""
    lasting = {
        name: SpotRates(
            up=True, age_s=HOUR, hazards=Hazards(up=(1 / s,) * BINS, down=(1 / s,) * BINS)
        )
        for name, s in (("brief", HOUR), ("long", 10 * HOUR))
    }
    for price, opened in ((0.95, "long"), (0.90, "brief")):
        pools = tuple(
            replace(pool(name, Market.SPOT, usd), start_s=300.0, spot=lasting[name])
            for name, usd in (("brief", price), ("long", 1.0))
        )
        assert caps(view(pools=pools), CPU)[opened] == 1


def test_idle_hosts_are_given_back_but_not_those_that_something_needs():
    idle, rested = node("rack-1", idle_s=61), node("spot-a-1", idle_s=90)
    kept = replace(CPU, kind=RequestKind.FLOOR)
    plan = plan_fleet(view(idle, rested), Demand())
    assert {a.subject for a in plan.actions if a.kind is ActionKind.RELEASE} == {
        "rack-1",
        "spot-a-1",
    }
    plan = plan_fleet(view(idle, rested), Demand(requests=[kept]))
    assert [a.subject for a in plan.actions if a.kind is ActionKind.RELEASE] == ["spot-a-1"]
    assert plan.caps["spot-a"].max == 1, "the cap stays until the host is gone"


def given_back(fleet: FleetView, *requests: Request) -> list[str]:
    actions = plan_fleet(fleet, Demand(requests=requests)).actions
    return [a.subject for a in actions if a.kind is ActionKind.RELEASE]


GANG = [replace(CPU, in_gang=True, apart="0")] * 2


def test_a_gang_that_waits_for_its_second_host_keeps_its_first():
    first, second = node("rack-1", idle_s=61), node("spot-a-1", NodeState.LAUNCHING)
    assert given_back(view(first, second), *GANG) == []
    assert given_back(view(first, second)) == ["rack-1"], "the gang is gone"
    other = node("rack-2", idle_s=70)
    assert given_back(view(first, second, other), GANG[0], CPU) == []
    assert given_back(view(first, second, other), GANG[0]) == ["rack-2"], "no more than it fits"


def test_a_gang_for_which_nothing_comes_lets_its_host_go_after_a_while():
    alone = (pool("rack", Market.ON_PREM, 0.35, most=1),)
    for idle_s, gone in ((60 + HOLD_S - 1, []), (60 + HOLD_S, ["rack-1"])):
        assert given_back(view(node("rack-1", idle_s=idle_s), pools=alone), *GANG) == gone
    late = node("rack-1", idle_s=60 + HOLD_S)
    coming = (alone[0], replace(POOLS[2], promised=1))
    assert given_back(view(late, pools=coming), *GANG) == [], "its second host is on its way"


def test_work_that_does_not_fit_an_idle_host_does_not_keep_it():
    idle = node("rack-1", idle_s=61)
    elsewhere = replace(CPU, selector=[ON_DEMAND])
    assert given_back(view(idle), elsewhere, Request(resources={"CPU": 4})) == ["rack-1"]


def test_an_idle_host_stays_for_as_long_as_it_is_paid_for():
    pools = (replace(POOLS[2], shortest_paid_s=600.0),)
    for age_s, released in ((599.0, []), (600.0, ["spot-a-1"])):
        fleet = view(node("spot-a-1", idle_s=500.0, age_s=age_s), pools=pools)
        actions = plan_fleet(fleet, Demand()).actions
        assert [a.subject for a in actions if a.kind is ActionKind.RELEASE] == released


def test_min_hosts_are_launched_and_never_given_back():
    pools = (pool("rack", Market.ON_PREM, 0.35, most=3, least=1),)
    assert plan_fleet(view(pools=pools), Demand()).caps == {"rack": Caps(min=1, max=1, more=1)}
    plan = plan_fleet(view(node("rack-1", idle_s=999), pools=pools), Demand())
    assert plan.actions == ()


def test_bundles_that_must_be_apart_get_nodes_of_their_own():
    big = (replace(pool("rack", Market.ON_PREM, 0.35, most=4), resources={"CPU": 8.0}),)
    assert caps(view(pools=big), *[CPU] * 3) == {"rack": 1}
    assert caps(view(pools=big), *[replace(CPU, apart="gang")] * 3) == {"rack": 3}


def test_a_grant_on_its_way_is_neither_doubled_nor_taken_back():
    promised = tuple(replace(p, promised=1) if p.name == "spot-b" else p for p in POOLS)
    fleet = view(pools=promised)
    assert caps(fleet, CPU) == {"cloud": 0, "spot-b": 1, "spot-a": 0, "rack": 0}
    assert caps(fleet) == {"cloud": 0, "spot-b": 1, "spot-a": 0, "rack": 0}
    assert caps(fleet, CPU, CPU) == {"cloud": 0, "spot-b": 1, "spot-a": 0, "rack": 1}
    full = tuple(replace(p, promised=2) if p.name == "rack" else p for p in POOLS)
    assert caps(view(pools=full), *[CPU] * 3)["rack"] == 2


def test_a_budget_is_kept_with_the_drain_reserved():
    rich = replace(view(), budget_usd=1.0, spent_usd=0.5)
    assert caps(rich, CPU)["rack"] == 1
    broke = replace(rich, spent_usd=0.9999)
    assert caps(broke, CPU) == {"cloud": 0, "spot-b": 0, "spot-a": 0, "rack": 0}
    (unmet,) = plan_fleet(broke, Demand(requests=[CPU])).actions
    assert "budget of 1.0000 USD" in unmet.why

    working = view(node("rack-1", busy=1), node("spot-a-1", busy=1))
    reserve = (0.35 + 0.92) * (30 + BUDGET_LAG_S) / 3600
    inside = replace(working, budget_usd=1.0, spent_usd=1.0 - reserve - 1e-6)
    assert plan_fleet(inside, Demand()).actions == ()
    at_the_edge = replace(inside, spent_usd=1.0 - reserve)
    sent_away = plan_fleet(at_the_edge, Demand()).actions
    assert [(a.kind, a.subject) for a in sent_away] == [
        (ActionKind.DRAIN, "rack-1"),
        (ActionKind.DRAIN, "spot-a-1"),
    ]


def test_with_a_budget_nothing_of_unknown_price_is_launched_and_the_free_always_is():
    pools = (pool("mystery", Market.SPOT, None), pool("own", Market.ON_PREM, 0.0))
    spent = replace(view(pools=pools), budget_usd=1.0, spent_usd=2.0)
    assert caps(spent, *[CPU] * 3) == {"mystery": 0, "own": 2}


nodes = st.lists(
    st.builds(
        lambda pool, n, state, busy, idle, since: node(
            f"{pool}-{n}", state, busy=busy, idle_s=idle, draining_since=NOW - since
        ),
        pool=st.sampled_from([p.name for p in POOLS]),
        n=st.integers(0, 9),
        state=st.sampled_from(NodeState),
        busy=st.integers(0, 1),
        idle=st.floats(0, 200),
        since=st.floats(0, 20),
    ),
    max_size=8,
    unique_by=lambda n: n.host,
)
requests = st.lists(
    st.builds(
        Request,
        resources=st.sampled_from([{"CPU": 1.0}, {"CPU": 0.5}, {"GPU": 1.0}, {"CPU": 4.0}]),
        kind=st.sampled_from(RequestKind),
        selector=st.sampled_from([(), (ON_DEMAND,)]),
    ),
    max_size=12,
)


@given(nodes, requests)
def test_caps_never_exceed_the_pool_and_never_fall_below_healthy_nodes(nodes, requests):
    fleet = view(*nodes)
    plan = plan_fleet(fleet, Demand(requests=requests))
    assert plan == plan_fleet(fleet, Demand(requests=requests))
    for p in POOLS:
        cap = plan.caps[p.name]
        healthy = sum(n.pool == p.name and n.state is not NodeState.DRAINING for n in nodes)
        living = sum(n.pool == p.name for n in nodes)
        assert cap.min <= cap.max
        assert cap.max >= healthy
        assert cap.max <= max(p.max_hosts, living)
    assert all(action.why for action in plan.actions)


@given(nodes, requests)
def test_granting_what_was_asked_for_ends_the_asking(nodes, requests):
    """Nodes granted at one tick serve the same demand at the next: no oscillation."""
    fleet = view(*nodes)
    opened = [
        a
        for a in plan_fleet(fleet, Demand(requests=requests)).actions
        if a.kind is ActionKind.LAUNCH
    ]
    new = [
        node(f"{action.subject}-new{i}", NodeState.LAUNCHING)
        for action in opened
        for i in range(action.count)
    ]
    again = plan_fleet(view(*nodes, *new), Demand(requests=requests))
    assert not [a for a in again.actions if a.kind is ActionKind.LAUNCH]


def test_the_group_that_a_granted_job_is_starting_opens_nothing():
    """Its bundles are pending for a moment, its standing request for as long as it runs."""
    gang = [replace(CPU, in_gang=True)] * 4
    standing = [replace(CPU, kind=RequestKind.FLOOR)] * 4
    hosts = ("rack-1", "rack-2")
    ask = Ask(t=NOW, run="r", least=1, most=4, resources={"CPU": 1.0})
    job = JobView(id="j", submitted_at=NOW, ask=ask, grant=Grant(hosts=hosts))
    fleet = view(*[node(host) for host in hosts], pools=POOLS[3:])
    assert without_planned([*gang, *standing], [job]) == []
    assert without_planned([*gang, CPU], [job]) == [CPU], "a task of its shape is another's"
    assert without_planned([*gang, *standing], [], [ask]) == gang, "it was stopped a moment ago"
    running = replace(job, ask=replace(ask, hosts=hosts))
    assert without_planned([*gang, *standing], [running]) == gang, "so is a group while it runs"
    plan = plan_fleet(fleet, Demand(requests=[*gang, *standing], jobs=[job]))
    assert plan.caps["rack"].more == 0
