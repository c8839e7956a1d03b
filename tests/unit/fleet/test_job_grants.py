"""Jobs that say what they need: home first, spot, on-demand when the deadline needs it, in turn."""

from __future__ import annotations

from dataclasses import replace

from fleet_world import World, WorldJob, pool

from rayburst.fleet.jobs import MarketPolicy, Tenant, Terms
from rayburst.fleet.spec import Market
from rayburst.fleet.view import ActionKind

HOUR = 3600.0
POOLS = [
    pool("rack", Market.ON_PREM, 0.35, domain="home"),
    pool("spot-a", Market.SPOT, 0.92, domain="a"),
    pool("spot-b", Market.SPOT, 0.95, domain="b"),
    pool("cloud", Market.ON_DEMAND, 3.06, domain="a", most=4),
]


def world(*jobs: WorldJob, **more) -> World:
    return World(pools=more.pop("pools", POOLS), jobs={job.id: job for job in jobs}, **more)


def kinds(w: World) -> set[str]:
    return {h.rsplit("-", 1)[0] for _, what, h in w.log if what == "launched"}


def test_a_job_that_says_nothing_gets_owned_hosts_and_never_on_demand():
    w = world(WorldJob("a", steps=100, most=2), WorldJob("b", steps=100, most=2)).run(400)
    assert all(job.ended_at for job in w.jobs.values())
    assert kinds(w) == {"rack", "spot-a"}
    assert w.hosts == {}, "everything is given back"


def test_a_gang_stays_in_one_domain_unless_it_may_span():
    w = world(WorldJob("a", steps=1e4, least=1, most=4)).run(100)
    assert w.held("a") == ["rack", "rack"]
    w = world(WorldJob("a", steps=1e4, most=4, terms=Terms(span_any=True))).run(100)
    assert w.held("a") == ["rack", "rack", "spot-a", "spot-a"]
    w = world(WorldJob("a", steps=1e4, most=4), span_any=True).run(100)
    assert len(w.held("a")) == 4


def test_a_job_of_four_asks_for_four_hosts_and_fills_its_own_machines_first():
    job = WorldJob("a", steps=1e4, most=4)
    w = world(job, pools=[replace(p, max_hosts=2) for p in POOLS], span_any=True, launch_s=5.0)
    first = w.step()
    assert {name: caps.max for name, caps in first.caps.items() if caps.max} == {
        "rack": 2,
        "spot-a": 2,
    }
    w.run(200)
    assert [what for _, what, _ in w.log] == ["launched"] * 4


def test_a_gang_that_fits_no_domain_queues_with_its_reason():
    w = world(WorldJob("a", steps=10, least=3, most=3))
    plan = w.step()
    (queued,) = plan.actions
    assert (queued.kind, queued.subject) == (ActionKind.QUEUE, "a")
    assert "3 worker(s)" in queued.why
    assert plan.grants["a"].pools == {}


def test_a_deadline_far_away_is_met_at_home():
    job = WorldJob("a", steps=600, most=2, terms=Terms(deadline=2000))
    w = world(job).run(600)
    assert job.ended_at
    assert kinds(w) == {"rack"}


def test_a_near_deadline_leaves_home_for_a_domain_with_more_workers():
    pools = [replace(POOLS[0], max_hosts=1), *POOLS[1:]]
    job = WorldJob("a", steps=1000, most=2, terms=Terms(deadline=900))
    w = world(job, pools=pools).run(900)
    assert job.ended_at and job.ended_at <= 900
    assert "spot-a" in kinds(w) or "cloud" in kinds(w)


def test_no_spot_and_a_deadline_takes_on_demand_and_comes_back_to_spot():
    pools = [replace(p, max_hosts=2) for p in POOLS[1:]]
    job = WorldJob("a", steps=8000, most=2, terms=Terms(deadline=5000))
    w = world(job, pools=pools, dry=lambda name, now: name.startswith("spot") and 400 < now < 2000)
    w.run(5000)
    assert job.ended_at and job.ended_at <= 5000
    assert "cloud" in kinds(w)
    assert "spot-a" in kinds(w)
    later = [h for t, what, h in w.log if what == "launched" and t >= 2000 and "spot" in h]
    assert later, "back to spot once it is there again"
    drains = [h for t, what, h in w.log if what == "drain"]
    assert any(h.startswith("cloud") for h in drains), "a planned removal is a drain"


def test_a_deadline_that_cannot_be_met_is_told_at_once_with_the_least_lateness():
    job = WorldJob("a", steps=4000, most=4, terms=Terms(deadline=300))
    w = world(job)
    plan = w.step()
    late = [a for a in plan.actions if a.kind is ActionKind.LATE]
    assert late and "min late on 4 x cloud, for 3.4000 USD" in late[0].why
    w.run(200)
    assert w.held("a") == ["cloud"] * 4, "as fast as there is"


def test_a_floor_is_kept_on_demand_if_need_be():
    job = WorldJob("a", steps=1e5, least=1, most=2, terms=Terms(floor=2))
    w = world(job, pools=POOLS[1:], dry=lambda name, now: name.startswith("spot"))
    w.run(200)
    assert w.held("a") == ["cloud", "cloud"]


def test_market_policies_are_kept():
    for market, expected in (
        (MarketPolicy.ON_PREM, set()),
        (MarketPolicy.SPOT, set()),
        (MarketPolicy.ON_DEMAND, {"cloud"}),
    ):
        job = WorldJob("a", steps=1000, most=2, terms=Terms(deadline=700, market=market))
        w = world(job, pools=POOLS[1:], dry=lambda name, now: name.startswith("spot"))
        assert {h.split("-")[0] for _, what, h in w.run(300).log if what == "launched"} == expected


def test_a_budget_is_hard_for_a_job_and_for_a_tenant():
    budget = 0.05
    for terms, tenants in (
        (Terms(budget_usd=budget), {}),
        (Terms(tenant="t"), {"t": Tenant(budget_usd=budget)}),
        (Terms(budget_usd=budget, deadline=4000), {}),
    ):
        job = WorldJob("a", steps=1e6, most=2, terms=terms)
        w = world(job, pools=POOLS[1:])
        for _ in range(400):
            w.tenants = {
                n: Tenant(budget_usd=t.budget_usd, spent_usd=job.spent_usd)
                for n, t in tenants.items()
            }
            w.step()
        assert budget * 0.5 < job.spent_usd <= budget, (terms, job.spent_usd)
        assert w.actions(ActionKind.SHORT)
        assert w.hosts == {}


def test_the_last_of_a_budget_buys_no_host_that_leaves_before_it_has_worked():
    """What is kept back for drains is free again once hosts have left sooner, and too little."""
    tenant = Tenant(budget_usd=0.06)
    jobs = [WorldJob(name, steps=1e6, terms=Terms(tenant="t")) for name in "ab"]
    w = world(*jobs, pools=POOLS[1:])
    for _ in range(400):
        w.tenants = {"t": replace(tenant, spent_usd=sum(job.spent_usd for job in jobs))}
        w.step()
    happened = [what for _, what, _ in w.log]
    assert happened.count("launched") == 2, w.log
    assert 0.03 < sum(job.spent_usd for job in jobs) <= 0.06
    assert w.hosts == {}


def test_no_host_is_taken_whose_shortest_paid_time_the_budget_does_not_reach():
    """An hour is paid in any case: 0.92 USD."""
    for budget, launched in ((0.91, set()), (0.93, {"spot-a"})):
        job = WorldJob("a", steps=100, terms=Terms(budget_usd=budget))
        w = world(job, pools=[replace(POOLS[1], shortest_paid_s=HOUR)]).run(50)
        assert kinds(w) == launched
        assert bool(w.actions(ActionKind.QUEUE)) is not bool(launched)


def test_priority_first_then_the_smaller_weighted_share():
    jobs = [
        WorldJob(f"{tenant}{i}", steps=1e5, terms=Terms(tenant=tenant), submitted_at=0)
        for tenant in ("x", "y")
        for i in range(4)
    ]
    pools = [pool("rack", Market.ON_PREM, 0.1, most=6)]
    shares = {"x": Tenant(share=2.0), "y": Tenant(share=1.0)}
    w = world(*jobs, pools=pools, tenants=shares).run(100)
    running = sorted(job.id[0] for job in jobs if job.hosts)
    assert running == ["x"] * 4 + ["y"] * 2
    urgent = WorldJob("z", steps=10, terms=Terms(priority=5), submitted_at=100)
    w.jobs["z"] = urgent
    w.run(200)
    assert urgent.ended_at, "a higher priority takes the host of a lower one"
    assert sum(1 for job in jobs if job.hosts) == 6, "and gives it back"


def test_an_elastic_job_shrinks_for_a_tenant_that_has_nothing():
    pools = [pool("rack", Market.ON_PREM, 0.1, most=4)]
    wide = WorldJob("wide", steps=1e5, least=1, most=4, terms=Terms(tenant="x"))
    late = WorldJob("late", steps=1e5, least=2, most=2, terms=Terms(tenant="y"), submitted_at=200)
    w = world(wide, late, pools=pools).run(195)
    assert len(wide.hosts) == 4
    w.run(200)
    assert (len(wide.hosts), len(late.hosts)) == (2, 2)
    assert w.actions(ActionKind.DRAIN) == [], "the hosts stay"


def test_coming_home_is_make_before_break_and_only_when_it_pays():
    rack = replace(POOLS[0], max_hosts=0)
    for steps, comes in ((40_000, True), (650, False)):
        job = WorldJob("a", steps=steps, most=2)
        w = world(job, pools=[rack, POOLS[1]]).run(300)
        assert w.held("a") == ["spot-a", "spot-a"]
        w.pools[0] = POOLS[0]
        gaps = []
        for _ in range(60):
            if not job.ended_at:
                w.step()
                gaps.append(bool(job.hosts) or bool(job.ended_at))
        assert ("rack" in kinds(w)) is comes
        assert w.held("a") == (["rack", "rack"] if comes else [])
        assert gaps.count(False) <= 2, "it trains until its new place is up"
        assert bool(w.actions(ActionKind.MOVE)) is comes


def test_a_job_that_leaves_its_owned_host_to_another_keeps_its_rented_one():
    """The other may use no other market; going home with fewer workers would leave it waiting."""
    pools = [replace(POOLS[0], max_hosts=1), replace(POOLS[1], max_hosts=2)]
    wide = WorldJob("wide", steps=1e6, most=2, terms=Terms(tenant="x", span_any=True))
    home = WorldJob("home", steps=1e6, terms=Terms(tenant="y", market=MarketPolicy.ON_PREM))
    w = world(wide, home, pools=pools).run(300)
    assert w.held("home") == ["rack"]
    assert w.held("wide") == ["spot-a", "spot-a"]
    assert [what for _, what, _ in w.log] == ["launched"] * 3, "nothing is given back"


def test_a_move_that_has_begun_goes_on_until_it_is_done():
    """The only owned host is on its way: it is the job's own, and there is no other room."""
    job = WorldJob("a", steps=40_000)
    rack, spot = replace(POOLS[0], max_hosts=0), replace(POOLS[1], max_hosts=1)
    w = world(job, pools=[rack, spot], tick_s=1.0, launch_s=2.0).run(100)
    w.pools[0] = replace(POOLS[0], max_hosts=1)
    decided = []
    for _ in range(60):
        w.step()
        decided.append(dict(job.grant.pools))
    assert decided == [{"rack": 1}] * 60
    assert w.held("a") == ["rack"]
    assert [what for _, what, _ in w.log] == ["launched", "launched", "drain", "drained"]


def test_a_job_whose_work_is_unknown_is_measured_first():
    job = WorldJob("a", steps=500, most=2, measured=False, terms=Terms(deadline=5000))
    w = world(job, pools=POOLS[1:], dry=lambda name, now: name.startswith("spot") and now < 300)
    w.run(40)
    assert w.held("a") == ["cloud"]
    assert "measure" in " ".join(a.why for p in w.plans for a in p.actions)


def test_what_is_on_its_way_to_a_job_is_taken_before_anything_new():
    """A host is promised; then its pool loses one and ranks behind its neighbour."""
    job = WorldJob("a", steps=1e4, most=4)
    w = world(job, pools=[replace(p, max_hosts=2) for p in POOLS], span_any=True, launch_s=20.0)
    w.step()
    w.taken["spot-a"] = w.now
    plan = w.step()
    assert {name: caps.more for name, caps in plan.caps.items()} == {
        "rack": 2,
        "spot-a": 2,
        "spot-b": 0,
        "cloud": 0,
    }
    w.run(200)
    assert [what for _, what, _ in w.log] == ["launched"] * 4
