"""The book of jobs: what each has spent, over grants, ends and restarts of the agent."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest

from rayburst.checkpoint.store import ObjectStore
from rayburst.cost.attribution import LaunchPrices, attribute, tell
from rayburst.cost.facts import Facts
from rayburst.cost.granted import granted_holds
from rayburst.cost.spent import Spent, spent_of
from rayburst.fleet.book import STANDING_S, Book, SubmittedJob
from rayburst.fleet.decisions import DecisionBatch, DecisionEvent, DecisionLog
from rayburst.fleet.events import NodeEvent
from rayburst.fleet.jobs import Tenant
from rayburst.fleet.lines import JobQueue, job_line
from rayburst.fleet.spec import Limits, TenantSpec
from rayburst.fleet.spending import Spending, warnings
from rayburst.fleet.view import Action, ActionKind, Caps, Plan
from rayburst.train.grants import Ask, Grant

PRICES = {"spot-1": 36.0, "spot-2": 36.0}  # a cent a second
JOB = SubmittedJob(id="j", submitted_at=0.0, metadata={"tenant": "t", "budget": "1 USD"})
ASK = Ask(t=0, run="r", least=1, most=2, resources={"CPU": 1})


def plan(*hosts: str, why: str = "spot", coming: tuple[str, ...] = (), **pools: int) -> Plan:
    grant = Grant(hosts=hosts, coming=coming, pools=pools, why=why)
    said = Action(kind=ActionKind.QUEUE, subject="other", why="no room")
    return Plan(caps={"spot": Caps(min=0, max=1)}, grants={"j": grant}, actions=(said,))


def opened(ask: Ask = ASK, **usd: float) -> Book:
    book = Book(spending=Spending(Spent(at=0.0, usd=usd)))
    book.views([JOB], {"j": ask.to_json()})
    return book


def spent(book: Book) -> float:
    (view,) = book.views([JOB], {"j": ASK.to_json()})
    return view.spent_usd


def test_a_job_pays_for_its_hosts_by_the_second_and_its_tenant_with_it():
    book = opened()
    book.charge(10.0, PRICES)
    book.enter(plan("spot-1", spot=1), 10.0, PRICES)
    book.charge(30.0, PRICES)
    assert spent(book) == pytest.approx(0.20)
    named = [TenantSpec(name="t", share=2, budget_usd=5.0), TenantSpec(name="idle", budget_usd=1)]
    tenants = book.tenants(named, 30.0)
    assert tenants["t"].spent_usd == pytest.approx(0.20)
    assert (tenants["t"].share, tenants["t"].budget_usd) == (2, 5.0)
    assert tenants["idle"].spent_usd == 0
    (limit,) = book.fleet_limits(Limits(budget_usd=9.0), 30.0)
    assert limit.spent_usd == pytest.approx(0.40), "the fleet pays for idle hosts too"


def test_two_jobs_on_one_host_halve_it():
    other = SubmittedJob(id="k", submitted_at=0.0, metadata={})
    book = opened()
    both = {"j": ASK.to_json(), "k": replace(ASK, hosts=("spot-1",)).to_json()}
    book.views([JOB, other], both)
    book.enter(plan(coming=("spot-1",), spot=1), 0.0, PRICES)
    book.charge(10.0, PRICES)
    assert [v.spent_usd for v in book.views([JOB, other], both)] == pytest.approx([0.05, 0.05])


def test_the_tighter_of_a_tenants_budgets_counts_and_a_new_month_starts_anew():
    book = opened(**{"tenant t": 4.0, "1970-01 tenant t": 1.0})
    tenant = TenantSpec(name="t", budget_usd=5.0, monthly_budget_usd=1.5)
    assert book.tenants([tenant], 10.0)["t"] == Tenant(budget_usd=1.5, spent_usd=1.0)
    february = 31 * 86_400.0 + 1
    assert book.tenants([tenant], february)["t"] == Tenant(budget_usd=5.0, spent_usd=4.0)


def test_budgets_that_are_nearly_spent_are_told_for_jobs_tenants_and_the_fleet():
    book = opened(**{"job j": 0.85, "tenant t": 0.85, "1970-01 fleet": 79.0})
    tenant = TenantSpec(name="t", budget_usd=1.0)
    fleet = book.fleet_limits(Limits(monthly_budget_usd=100.0), 0.0)
    told = warnings([*fleet, *book.limits([tenant], 0.0)])
    assert [(a.kind, a.subject) for a in told] == [("budget", "tenant t"), ("budget", "j")]
    assert "85% of its budget is spent: 0.8500 of 1.0000 USD" in told[0].why


def test_a_decision_is_an_event_once_and_a_changed_grant_always():
    book = opened()
    kinds = [
        [d.kind for d in book.enter(plan(*hosts, spot=1), now, PRICES)]
        for now, hosts in ((1.0, ()), (2.0, ()), (3.0, ("spot-1",)), (4.0, ("spot-1",)))
    ]
    assert kinds == [["queue", "grant"], [], ["grant"], []]


def test_a_launch_is_always_an_event_and_a_move_when_its_target_is_another():
    book = opened()
    launch = Action(kind=ActionKind.LAUNCH, subject="spot", why="1 node(s) for job j")
    moves = [
        Action(
            kind=ActionKind.MOVE, subject="j", why=f"1 x {pool} instead of 1 host(s): saves {usd}"
        )
        for pool, usd in (("rack", 0.12), ("rack", 0.11), ("spot", 0.11))
    ]
    plans = [replace(plan(), actions=(launch, move)) for move in moves]
    kinds = [[d.kind for d in book.enter(one, now, PRICES)] for now, one in enumerate(plans)]
    assert kinds == [["launch", "move", "grant"], ["launch"], ["launch", "move"]]


def test_hosts_that_a_job_pays_for_are_written_down_whenever_they_change():
    book = opened()
    book.enter(plan(spot=1), 0.0, PRICES)
    (waits,) = book.enter(plan(coming=("spot-1",), spot=1), 1.0, PRICES)
    assert (waits.kind, waits.hosts, waits.pays) == ("pays", (), ("spot-1",))
    (gone,) = book.enter(plan(coming=("spot-1",), spot=1), 2.0, {"spot-2": 36.0})
    assert (gone.kind, gone.pays) == ("pays", ()), "a host that does not live is paid by nobody"


def test_an_agent_that_is_started_again_goes_on_from_the_ledger_with_the_same_grants():
    book = opened()
    first = book.enter(plan("spot-1", spot=1), 0.0, PRICES)
    book.charge(10.0, PRICES)
    second = book.enter(plan("spot-1", "spot-2", spot=2), 10.0, PRICES)
    ledger = Spending(Spent(at=20.0, usd={"job j": 0.30}))
    again = Book(past=(*first, *second), spending=ledger)
    (view,) = again.views([JOB], {"j": ASK.to_json()})
    assert view.grant is not None and view.grant.hosts == ("spot-1", "spot-2")
    again.charge(20.0, PRICES)
    again.charge(25.0, PRICES)
    assert spent(again) == pytest.approx(0.30 + 0.10)


def test_a_job_that_ended_pays_no_more_and_its_tenant_remembers():
    book = opened()
    book.enter(plan("spot-1", spot=1), 0.0, PRICES)
    book.charge(10.0, PRICES)
    (end,) = book.end([], 10.0)
    assert (end.kind, end.subject, end.spent_usd) == ("end", "j", pytest.approx(0.10))
    assert end.pays == ()
    assert book.end([], 11.0) == ()
    book.charge(10.0, PRICES)
    book.charge(99.0, PRICES)
    tenant = TenantSpec(name="t", budget_usd=1.0)
    assert book.tenants([tenant], 99.0)["t"].spent_usd == pytest.approx(0.10)


def test_the_ledger_and_the_book_count_the_same():
    """A job's hosts come, change and go; the ledger knows the decisions and the nodes alone."""
    rng = random.Random(4)
    book, written = opened(), []
    for second in range(200):
        hosts = tuple(sorted(rng.sample(sorted(PRICES), rng.randrange(3))))
        if second % 7 == 0:
            written += book.enter(plan(*hosts, spot=len(hosts)), float(second), PRICES)
        book.charge(float(second + 1), PRICES)
    written += book.end([], 200.0)
    events = [
        NodeEvent(t=t, kind=kind, node=node, pool="spot", market="spot",
                  price_usd_per_hour=36.0, why="")
        for node in PRICES for t, kind in ((0.0, "requested"), (0.0, "up"), (200.0, "gone"))
    ]  # fmt: skip
    facts = Facts(events=events, holds=list(granted_holds(written)))
    entries = attribute(tell(facts), prices=LaunchPrices(), period=(0, 3_600_000), now_ms=300_000)
    told = spent_of(entries, at=300.0)
    for key in ("job j", "tenant t", "fleet", "1970-01 tenant t"):
        assert book.spending.usd(key) == pytest.approx(told.usd[key]), key
    assert {e.line.purpose for e in entries} == {"waiting", "idle"}, "nothing ran there"


def test_the_standing_request_of_a_job_that_was_stopped_is_known_until_ray_forgets_it():
    book = opened()
    book.end([], 10.0)
    assert book.lately_ended(10.0 + STANDING_S - 1) == [ASK]
    assert book.lately_ended(10.0 + STANDING_S) == []


def test_metadata_that_cannot_be_read_is_a_problem_and_not_a_failure():
    book = Book()
    bad = SubmittedJob(id="b", submitted_at=0.0, metadata={"deadline": "soon"})
    (view,) = book.views([bad], {"b": ASK.to_json()})
    assert "deadline 'soon'" in view.problem
    assert view.terms.deadline is None
    assert "soon" in job_line(view, Grant(), []).why


def test_the_queue_shows_who_runs_and_who_waits_for_what():
    book = opened()
    (view,) = book.views([JOB], {"j": ASK.to_json()})
    silent = SubmittedJob(id="s", submitted_at=0.0, metadata={})
    (unplanned,) = book.views([silent], {})
    lines = [
        job_line(view, Grant(why="no domain has room"), []),
        job_line(unplanned, None, []),
    ]
    assert [line.state for line in lines] == ["waits", "unplanned"]
    first = replace(lines[0], job="first")
    text = str(JobQueue([lines[1], first, lines[0]], now=0.0))
    places = [text.index(f" {job} ") for job in ("first", "j", "s")]
    assert places == sorted(places), "in turn, the unplanned last"
    assert "no domain has room" in text and "0 of 1 to 2" in text and "0.0000 of 1.00" in text


def test_decisions_are_read_as_they_were_written_newest_last(tmp_path):
    log = DecisionLog(ObjectStore.open(str(tmp_path / "store")), spool=tmp_path / "spool")
    for t in (1.0, 2.0, 3.0):
        event = DecisionEvent(t=t, kind="grant", subject=f"j{t:.0f}", why="x", hosts=("a",))
        log.append(DecisionBatch(t=t, decisions=(event,)))
    assert [d.subject for d in log.last()] == ["j1", "j2", "j3"]
    assert [d.subject for d in log.last(2)] == ["j2", "j3"]
    assert log.last(1)[0].hosts == ("a",)


def test_decisions_of_another_version_are_read(tmp_path):
    store = ObjectStore.open(str(tmp_path / "store"))
    log = DecisionLog(store, spool=tmp_path / "spool")
    was = {"t": 1.0, "kind": "grant", "subject": "j", "why": "spot", "hosts": ["a"]}
    store.put(
        "decisions/000000000001000.json",
        json.dumps({"t": 1.0, "decisions": [{**was, "usd_per_hour": 3.0}]}).encode(),
    )
    expected = DecisionEvent(t=1.0, kind="grant", subject="j", why="spot", hosts=("a",))
    assert log.last() == [expected]
