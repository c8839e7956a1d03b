"""What holds for every plan, on random fleets, jobs and markets played to the end."""

from __future__ import annotations

import os
from dataclasses import replace

from fleet_world import World, WorldJob, pool
from hypothesis import given, settings
from hypothesis import strategies as st

from rayburst.fleet.deadline import DeadlinePolicy
from rayburst.fleet.jobs import MarketPolicy, Tenant, Terms
from rayburst.fleet.outlook import Outlook
from rayburst.fleet.planner import plan_fleet
from rayburst.fleet.spec import Market
from rayburst.fleet.view import ActionKind

POLICY = DeadlinePolicy(tables=8)  # solved tables are shared: what is decided does not depend on it
START_S = CHANGE_S = 10.0
PATIENCE = 20 if os.environ.get("HYPOTHESIS_PROFILE") == "soak" else 1


def examples(count: int) -> settings:
    """So many examples in CI, and twenty times as many in `make soak`."""
    return settings(max_examples=count * PATIENCE)


pools = st.tuples(st.integers(0, 3), st.integers(1, 4), st.integers(0, 4)).map(
    lambda most: [
        pool("rack", Market.ON_PREM, 0.3, domain="home", most=most[0]),
        pool("spot-a", Market.SPOT, 0.9, domain="a", most=most[1]),
        pool("spot-b", Market.SPOT, 1.0, domain="b", most=most[2]),
        pool("cloud", Market.ON_DEMAND, 3.0, domain="a", most=4),
    ]
)


@st.composite
def jobs(draw, *, urgent: bool = True) -> dict[str, WorldJob]:
    found = {}
    for number in range(draw(st.integers(1, 4))):
        least = draw(st.integers(1, 2))
        found[f"j{number}"] = WorldJob(
            f"j{number}",
            steps=draw(st.integers(50, 1200)),
            least=least,
            most=draw(st.integers(least, 4)),
            changeover_s=CHANGE_S,
            submitted_at=float(draw(st.integers(0, 20)) * 5),
            measured=draw(st.booleans()),
            terms=Terms(
                deadline=draw(st.none() | st.floats(100, 3000)) if urgent else None,
                budget_usd=draw(st.none() | st.floats(0.01, 1.0)),
                tenant=draw(st.sampled_from("xyz")),
                priority=draw(st.integers(0, 1)),
                floor=draw(st.sampled_from([0, 0, 1])),
                market=draw(st.sampled_from(MarketPolicy)),
            ),
        )
    return found


droughts = st.dictionaries(
    st.sampled_from(["spot-a", "spot-b"]),
    st.lists(st.tuples(st.integers(0, 1500), st.integers(10, 600)), max_size=3),
)


def market(periods):
    return lambda name, now: any(b <= now < b + length for b, length in periods.get(name, ()))


@examples(15)
@given(pools, jobs(), droughts, st.booleans())
def test_no_plan_exceeds_a_pool_or_a_budget_and_every_action_has_its_reason(
    pools, jobs, droughts, span
):
    world = World(pools, jobs, dry=market(droughts), span_any=span, policy=POLICY, start_s=START_S)
    world.run(1200)  # caps, single holders and reasons are checked at every step
    for job in jobs.values():
        if job.terms.budget_usd is not None:
            assert job.spent_usd <= job.terms.budget_usd + 1e-9, job
    assert all(sum(h.pool == p.name for h in world.hosts.values()) <= p.max_hosts for p in pools)


@examples(15)
@given(pools, jobs(), droughts)
def test_the_same_input_gets_the_same_plan_whatever_was_asked_before(pools, jobs, droughts):
    world = World(pools, jobs, dry=market(droughts), policy=POLICY, start_s=START_S)
    world.run(60)
    view, demand = world.view(), world.demand()
    assert plan_fleet(view, demand, policy=POLICY) == plan_fleet(view, demand)


@examples(15)
@given(pools, jobs(urgent=False), st.booleans())
def test_nothing_comes_and_goes_while_nothing_changes(pools, jobs, span):
    """Jobs without an end, a market that stands still: after a while no host is touched."""
    for job in jobs.values():
        job.steps, job.terms = 1e9, replace(job.terms, budget_usd=None)
    world = World(pools, jobs, span_any=span, policy=POLICY, start_s=START_S).run(400)
    before, grants = list(world.log), {job.id: job.grant for job in jobs.values()}
    world.run(200)
    assert world.log == before
    assert {job.id: job.grant for job in jobs.values()} == grants


@examples(25)
@given(pools, jobs(urgent=False), st.booleans(), st.sampled_from([0.0, 5.0, 15.0]))
def test_no_more_hosts_are_asked_for_than_the_jobs_can_use(pools, jobs, span, launch_s):
    """Jobs without an end that were all there at the start: every host asked for stays in use."""
    for job in jobs.values():
        job.steps, job.submitted_at, job.measured = 1e9, 0.0, True
        job.terms = replace(job.terms, budget_usd=None)
    world = World(
        pools, jobs, span_any=span, policy=POLICY, start_s=START_S, launch_s=launch_s
    ).run(300)
    launched = [host for _, what, host in world.log if what == "launched"]
    assert len(launched) <= sum(job.most for job in jobs.values())
    assert len(launched) == len(world.log), "none was given back"
    assert {h for job in jobs.values() for h in job.grant.hosts} == set(launched)


@examples(25)
@given(st.integers(100, 2000), st.floats(1.3, 2.5), droughts, st.integers(0, 1), st.booleans())
def test_a_deadline_that_can_be_met_is_met_whatever_the_market_does(
    work_s, slack, droughts, home, measured
):
    """Never idle while that would miss a deadline: on-demand is there, money is no limit."""
    deadline = work_s * slack + 6 * (START_S + CHANGE_S) + 60
    job = WorldJob(
        "a", steps=work_s, changeover_s=CHANGE_S, measured=measured, terms=Terms(deadline=deadline)
    )
    found = [
        pool("rack", Market.ON_PREM, 0.3, domain="home", most=home),
        pool("spot-a", Market.SPOT, 0.9, domain="a"),
        pool("cloud", Market.ON_DEMAND, 3.0, domain="a"),
    ]
    world = World(found, {"a": job}, dry=market(droughts), policy=POLICY, start_s=START_S)
    world.run(deadline)
    assert job.ended_at is not None and job.ended_at <= deadline
    assert not world.actions(ActionKind.LATE)


levels = st.lists(
    st.tuples(st.integers(0, 4), st.sampled_from([10, 40, 120, 400])), min_size=1, max_size=12
)


@examples(8)
@given(
    st.integers(100, 2000),
    st.floats(1.2, 2.5),
    st.integers(1, 4),
    levels,
    st.booleans(),
    st.booleans(),
)
def test_a_gangs_deadline_is_met_however_many_hosts_the_market_leaves(
    work_s, slack, least, levels, measured, is_read
):
    """Hosts come and go one by one; parts on spot and on-demand beside them are in time too."""
    deadline = work_s * slack + 8 * (START_S + CHANGE_S) + 60
    job = WorldJob(
        "a",
        steps=work_s * 4,
        least=least,
        most=4,
        changeover_s=CHANGE_S,
        measured=measured,
        terms=Terms(deadline=deadline),
    )
    found = [
        pool("spot-a", Market.SPOT, 0.9, domain="a", most=4),
        pool("cloud", Market.ON_DEMAND, 3.0, domain="a", most=4),
    ]

    def room(name, now):
        if name == "cloud":
            return 4
        for hosts, length in levels:
            if now < length:
                return hosts
            now -= length
        return levels[-1][0]

    world = World(found, {"a": job}, room=room, policy=POLICY, start_s=START_S)
    world.outlook = Outlook(["spot-a"]) if is_read else None
    world.run(deadline)
    assert job.ended_at is not None and job.ended_at <= deadline
    assert not world.actions(ActionKind.LATE)


@examples(15)
@given(st.integers(1, 5), st.integers(1, 5), st.integers(4, 12))
def test_waiting_tenants_share_by_weight(x, y, hosts):
    """Single-worker jobs of two tenants that both want everything: shares differ by a host."""
    found = {
        f"{tenant}{number}": WorldJob(f"{tenant}{number}", 1e9, Terms(tenant=tenant))
        for tenant in "xy"
        for number in range(hosts)
    }
    world = World(
        [pool("rack", Market.ON_PREM, 0.3, most=hosts)],
        found,
        tenants={"x": Tenant(share=x), "y": Tenant(share=y)},
        policy=POLICY,
    ).run(100)
    has = {t: sum(bool(j.hosts) for j in found.values() if j.terms.tenant == t) for t in "xy"}
    assert has["x"] + has["y"] == hosts
    assert abs(has["x"] - hosts * x / (x + y)) <= 1
    assert len(world.queue()) == hosts
