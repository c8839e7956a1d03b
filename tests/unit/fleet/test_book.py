"""The book of jobs: what each has spent, over grants, ends and restarts of the agent."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rayburst.checkpoint.store import ObjectStore
from rayburst.fleet.book import STANDING_S, Book, SubmittedJob
from rayburst.fleet.decisions import DecisionBatch, DecisionEvent, DecisionLog
from rayburst.fleet.lines import JobQueue, job_line
from rayburst.fleet.spec import TenantSpec
from rayburst.fleet.view import Action, ActionKind, Caps, Plan
from rayburst.train.grants import Ask, Grant

PRICES = {"spot-1": 36.0, "spot-2": 36.0}  # a cent a second
JOB = SubmittedJob(id="j", submitted_at=0.0, metadata={"tenant": "t", "budget": "1 USD"})
ASK = Ask(t=0, run="r", least=1, most=2, resources={"CPU": 1})


def plan(*hosts: str, why: str = "spot", **pools: int) -> Plan:
    grant = Grant(hosts=hosts, pools=pools, why=why)
    said = Action(kind=ActionKind.QUEUE, subject="other", why="no room")
    return Plan(caps={"spot": Caps(min=0, max=1)}, grants={"j": grant}, actions=(said,))


def opened(now: float = 0.0) -> Book:
    book = Book()
    book.views([JOB], {"j": ASK.to_json()}, now)
    return book


def test_a_job_pays_for_its_hosts_by_the_second_and_its_tenant_with_it():
    book = opened()
    book.charge(10.0, PRICES)
    book.enter(plan("spot-1", spot=1), 10.0, PRICES)
    book.charge(30.0, PRICES)
    (view,) = book.views([JOB], {}, 30.0)
    assert view.spent_usd == pytest.approx(0.20)
    named = [TenantSpec(name="t", share=2, budget_usd=5.0), TenantSpec(name="idle")]
    tenants = book.tenants(named)
    assert tenants["t"].spent_usd == pytest.approx(0.20)
    assert (tenants["t"].share, tenants["t"].budget_usd) == (2, 5.0)
    assert tenants["idle"].spent_usd == 0


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


def test_an_agent_that_is_started_again_goes_on_with_what_was_spent():
    book = opened()
    first = book.enter(plan("spot-1", spot=1), 0.0, PRICES)
    book.charge(0.0, PRICES)
    book.charge(10.0, PRICES)
    second = book.enter(plan("spot-1", "spot-2", spot=2), 10.0, PRICES)
    again = Book(past=(*first, *second))
    again.charge(20.0, PRICES)
    (view,) = again.views([JOB], {"j": ASK.to_json()}, 20.0)
    assert view.spent_usd == pytest.approx(0.10 + 0.20)
    assert view.grant is not None and view.grant.hosts == ("spot-1", "spot-2")


def test_a_fleet_that_was_down_costs_its_jobs_nothing():
    first = opened().enter(plan("spot-1", spot=1), 0.0, PRICES)
    again = Book(past=first)
    again.charge(9999.0, {})
    (end,) = again.end([], 9999.0)
    assert end.spent_usd == 0.0


def test_a_job_that_ended_pays_no_more_and_its_tenant_remembers():
    book = opened()
    book.enter(plan("spot-1", spot=1), 0.0, PRICES)
    book.charge(0.0, PRICES)
    book.charge(10.0, PRICES)
    (end,) = book.end([], 10.0)
    assert (end.kind, end.subject, end.spent_usd) == ("end", "j", pytest.approx(0.10))
    assert book.end([], 11.0) == ()
    book.charge(99.0, PRICES)
    assert book.tenants([])["t"].spent_usd == pytest.approx(0.10)


def test_the_standing_request_of_a_job_that_was_stopped_is_known_until_ray_forgets_it():
    book = opened()
    book.end([], 10.0)
    assert book.lately_ended(10.0 + STANDING_S - 1) == [ASK]
    assert book.lately_ended(10.0 + STANDING_S) == []


def test_metadata_that_cannot_be_read_is_a_problem_and_not_a_failure():
    book = Book()
    bad = SubmittedJob(id="b", submitted_at=0.0, metadata={"deadline": "soon"})
    (view,) = book.views([bad], {"b": ASK.to_json()}, 0.0)
    assert "deadline 'soon'" in view.problem
    assert view.terms.deadline is None
    assert "soon" in job_line(view, Grant(), []).why


def test_the_queue_shows_who_runs_and_who_waits_for_what():
    book = opened()
    (view,) = book.views([JOB], {"j": ASK.to_json()}, 0.0)
    silent = SubmittedJob(id="s", submitted_at=0.0, metadata={})
    (unplanned,) = book.views([silent], {}, 0.0)
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
