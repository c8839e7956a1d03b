"""What the planner saw is on record, and gives the same plan again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from fleet_world import World, WorldJob, pool
from typer.testing import CliRunner

from rayburst.cli import app
from rayburst.errors import DataError
from rayburst.fleet import recorder
from rayburst.fleet.deadline import DeadlinePolicy
from rayburst.fleet.jobs import Tenant, Terms
from rayburst.fleet.packing import LabelRule, Request
from rayburst.fleet.planner import plan_fleet
from rayburst.fleet.recorder import EVERY_S, Recorder, Tick, earlier, read_ticks, replanned, said
from rayburst.fleet.spec import Market
from rayburst.fleet.supply import Supply
from rayburst.fleet.view import Demand, FleetView, NodeState, NodeView

POLICY = DeadlinePolicy(tables=8)
POOLS = [
    pool("rack", Market.ON_PREM, 0.3, domain="home", most=1),
    pool("spot-a", Market.SPOT, 0.9, domain="a", most=2),
    pool("cloud", Market.ON_DEMAND, 3.0, domain="a", most=2),
]


def a_history(file: Path) -> list[Tick]:
    """Ticks of a fleet with a job that has a deadline, spot that comes and goes, and tasks."""
    terms = Terms(deadline=200.0, budget_usd=5.0, tenant="x", span_any=True)
    job = WorldJob("j", steps=400, least=1, most=3, changeover_s=10.0, terms=terms)
    dry = lambda name, now: name == "spot-a" and 60 < now < 100  # noqa: E731
    world = World(POOLS, {"j": job}, dry=dry, policy=POLICY)
    picky = LabelRule(key="zone", values=frozenset({"a", "b"}), negated=True)
    tasks = (Request(resources={"CPU": 1.0}, selector=[picky], in_gang=True, apart="0"),)
    log, ticks = Recorder(file), []
    for _ in range(40):
        world.run(5)
        view = replace(world.view(), budget_usd=float("inf"))
        demand = replace(world.demand(), requests=tasks, tenants={"x": Tenant(share=2.0)})
        ticks.append(Tick(view=view, demand=demand, plan=plan_fleet(view, demand, policy=POLICY)))
        log.note(ticks[-1])
    return ticks


def test_every_plan_on_record_is_made_again(tmp_path: Path) -> None:
    ticks = a_history(tmp_path / "ticks.jsonl")
    found = list(read_ticks(tmp_path / "ticks.jsonl"))
    assert 5 < len(found) < len(ticks), "each change of plan, and not each second"
    by_time = {tick.view.now: tick for tick in ticks}
    for tick in found:
        assert said(tick.plan) == said(by_time[tick.view.now].plan) == said(replanned(tick, POLICY))
    assert len({json.dumps(said(tick.plan)) for tick in found}) > 5
    told = CliRunner().invoke(app, ["fleet", "replan", "--file", str(tmp_path / "ticks.jsonl")])
    assert told.exit_code == 0 and f"{len(found)} plans, {len(found)} the same" in told.output


def test_a_planner_that_decides_otherwise_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_history(tmp_path / "ticks.jsonl")
    monkeypatch.setattr(
        recorder, "plan_fleet", lambda view, demand, **_: plan_fleet(view, Demand())
    )
    told = CliRunner().invoke(app, ["fleet", "replan", "--file", str(tmp_path / "ticks.jsonl")])
    assert told.exit_code != 0 and "other plans now" in str(told.exception) + told.output


def test_nothing_new_is_written_seldom_and_the_file_stays_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "ticks.jsonl"
    log, world = Recorder(file), World(POOLS, {})
    view = world.view()
    tick = Tick(view=view, demand=Demand(), plan=plan_fleet(view, Demand()))
    for second in range(int(EVERY_S) + 1):
        log.note(replace(tick, view=replace(view, now=view.now + second)))
    assert len(list(read_ticks(file))) == 2
    monkeypatch.setattr(recorder, "MOST_BYTES", file.stat().st_size)
    log.note(replace(tick, view=replace(view, now=view.now + 2 * EVERY_S)))
    assert (len(list(read_ticks(earlier(file)))), len(list(read_ticks(file)))) == (2, 1)


def test_a_line_that_was_cut_off_is_left_out_and_anything_else_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "ticks.jsonl"
    a_history(file)
    count, whole = len(list(read_ticks(file))), file.read_text()
    file.write_text(whole[:-20])
    assert len(list(read_ticks(file))) == count - 1
    file.write_text('{"view": 1}\n')
    with pytest.raises(DataError, match=r"line 1 is no tick.*ticks\.jsonl of a fleet"):
        list(read_ticks(file))


def test_hosts_on_their_way_come_in_the_order_of_the_grant() -> None:
    names = [f"spot-{letter}" for letter in "fbdaec"]
    pools = [pool(name, Market.SPOT, 0.9, domain="a") for name in names]
    nodes = [
        NodeView(
            host=f"{name}-1",
            pool=name,
            state=NodeState.LAUNCHING,
            total={"CPU": 1.0},
            available={"CPU": 1.0},
        )
        for name in names
    ]
    supply = Supply(FleetView(now=0.0, idle_timeout_s=60.0, pools=pools, nodes=nodes))
    supply.keep("j", dict.fromkeys(names, 1))
    assert list(supply.holds("j")) == names, "not one that differs from process to process"
