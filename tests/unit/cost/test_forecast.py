"""Forecasts by hand where nothing is left to chance, and as wide as what is not known."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from typer.testing import CliRunner

from rayburst.cli import app
from rayburst.cost.capacity import JobToCome, plan_capacity, read_jobs
from rayburst.cost.coverage import check
from rayburst.cost.forecast import JobNeeds, Terms, forecast
from rayburst.cost.measured import measured
from rayburst.cost.plans import believe, limited, measured_needs, needs_of, terms_of
from rayburst.errors import DataError, PriceError, SpecError
from rayburst.fleet.hazards import BINS, Hazards, pooled_prior
from rayburst.fleet.recorded import RECORDED
from rayburst.fleet.replay.futures import Belief, ages, futures
from rayburst.fleet.replay.traces import ZoneTrace
from rayburst.fleet.spec import FleetSpec, default_path

CALM = Hazards(up=(1e-12,) * BINS, down=(1e-12,) * BINS)
TERMS = Terms(
    on_prem_usd_per_hour=0.5, own_nodes=2, spot_usd_per_hour=1.0, on_demand_usd_per_hour=3.0
)
NEEDS = JobNeeds(work_s=10 * 3600, changeover_s=1800, deadline_s=15 * 3600, budget_usd=20)


def told(needs: JobNeeds = NEEDS, belief: Belief | None = None, terms: Terms = TERMS, seed=0):
    rng = np.random.default_rng(seed)
    return forecast(needs, terms, belief or Belief(hazards=CALM), rng=rng, paths=20)


def test_on_a_calm_market_everything_is_certain():
    result = told()
    for name, usd in (("on-prem", 5.25), ("spot", 10.5), ("mixed", 10.5), ("on-demand", 31.5)):
        option = result.option(name)
        if name != "mixed":  # where spot is never lost, waiting for it costs nothing
            assert option.hours.low == option.hours.high == pytest.approx(10.5), name
        assert option.usd.middle == pytest.approx(usd), name
        assert option.on_time == 1.0
        assert option.in_budget == (usd <= 20)
    assert result.best.name == "on-prem"


def test_a_market_that_stays_down_leaves_on_demand_just_in_time():
    result = told(belief=Belief(hazards=CALM, up=False))
    assert math.isinf(result.option("spot").hours.low)
    assert result.option("spot").on_time == 0.0
    mixed = result.option("mixed")
    assert mixed.hours.high <= 15 and mixed.on_time == 1.0
    assert mixed.usd.middle == pytest.approx(31.5)
    assert "never" in str(result) and result.to_dict()["options"][1]["hours"]["low"] is None


def test_nodes_multiply_dollars_and_missing_ones_are_told():
    two = told(JobNeeds(work_s=3600, changeover_s=0, nodes=2))
    assert two.option("on-demand").usd.middle == pytest.approx(6.0)
    assert "without a deadline" in two.option("mixed").why_not
    three = told(JobNeeds(work_s=3600, changeover_s=0, nodes=3))
    assert three.option("on-prem").why_not == "3 nodes are needed and 2 owned"
    unknown = told(terms=Terms())
    assert all(option.why_not for option in unknown.options)
    assert unknown.best is None
    with pytest.raises(PriceError, match="on-prem, spot, mixed, on-demand"):
        unknown.option("reserved")


def test_the_same_seed_gives_the_same_forecast_and_deadlines_hold():
    belief = Belief(hazards=pooled_prior(RECORDED))
    first, again = told(belief=belief, seed=3), told(belief=belief, seed=3)
    assert first.to_dict() == again.to_dict()
    assert first.option("mixed").on_time == 1.0
    assert first.option("mixed").usd.low <= first.option("mixed").usd.high
    assert json.dumps(first.to_dict())


def test_little_seen_is_wide_and_much_seen_is_narrow():
    hazards = Hazards(up=(1 / 7200,) * BINS, down=(1 / 7200,) * BINS)

    def spread(ends: float) -> float:
        rng = np.random.default_rng(1)
        belief = Belief(hazards=hazards, ends=(ends, ends))
        up = futures(belief, ticks=400, tick_s=600.0, paths=400, rng=rng)
        return float(up.mean(axis=0).std())

    assert spread(0) > 1.2 * spread(1000)


def test_futures_begin_as_the_zone_is_now():
    rng = np.random.default_rng(0)
    belief = Belief(hazards=pooled_prior(RECORDED), up=False, age_s=1200.0)
    up = futures(belief, ticks=50, tick_s=600.0, paths=9, rng=rng)
    assert not up[0].any()
    assert ages(np.array([[True], [True], [False]]), 600.0, 60.0).ravel().tolist() == [60, 660, 0]


def test_a_check_knows_only_the_past():
    count = np.array([1, 1, 0] * 300)
    trace = ZoneTrace(trace_set="t", name="z", tick_s=600.0, count=count)
    changed = ZoneTrace(
        trace_set="t", name="z", tick_s=600.0, count=np.append(count[:450], 1 - count[450:])
    )
    needs = JobNeeds(work_s=6 * 3600, changeover_s=0, deadline_s=12 * 3600)
    prior = pooled_prior(RECORDED)

    def first(of: ZoneTrace):
        return next(check(of, needs, TERMS, prior=prior, every_s=72 * 3600.0, paths=5))

    one, other = first(trace), first(changed)
    assert one.start_s == other.start_s == 72 * 3600
    assert one.told.to_dict() == other.told.to_dict()
    assert one.hours != other.hours, "what happens later is another thing"


def log() -> list[dict]:
    common = {"rank": 0, "world": 2}
    steps = [
        {
            "t": 100.0 + 10 * i,
            "kind": "step",
            "step": i + 1,
            "loss": 1.0,
            "duration_s": 10.0,
            **common,
        }
        for i in range(5)
    ]
    start = {"t": 70.0, "kind": "start", "step": 0, "host": "n", **common}
    saved = {"t": 151.0, "kind": "checkpoint", "blocked_s": 2.0, "step": 5, **common}
    return [start, *steps, saved]


def test_a_run_that_has_begun_is_measured():
    seen = measured(log())
    assert (seen.step, seen.world) == (5, 2)
    assert seen.step_s == pytest.approx(10.0 + 2.0 / 5)
    assert seen.changeover_s == pytest.approx(20.0)
    needs = measured_needs(log(), run="first", steps=105)
    assert needs.work_s == pytest.approx(100 * seen.step_s)
    with pytest.raises(SpecError, match="nothing left"):
        measured_needs(log(), run="first", steps=5)
    with pytest.raises(SpecError, match="--steps"):
        measured_needs(log(), run="first", steps=None)
    with pytest.raises(DataError, match="no step"):
        measured([])


def test_needs_and_terms_as_people_give_them():
    needs = limited(needs_of("48h", "0.2h"), nodes=2, deadline="60h", budget="120 USD")
    assert needs == JobNeeds(
        work_s=172_800, changeover_s=720, nodes=2, deadline_s=216_000, budget_usd=120
    )
    with pytest.raises(SpecError, match="--work"):
        needs_of(None, None)
    terms = terms_of(FleetSpec.load(default_path()))
    assert (terms.own_nodes, terms.spot_usd_per_hour, terms.on_demand_usd_per_hour) == (
        2,
        0.92,
        3.06,
    )


def test_a_recorded_zone_teaches():
    shaky = ZoneTrace(trace_set="t", name="z", tick_s=600.0, count=np.array([1, 0] * 300))
    assert believe(shaky).hazards.up[0] > 3 * believe(None).hazards.up[0]
    assert believe(shaky).up is False


# capacity


def month() -> list[JobToCome]:
    return [
        JobToCome(name="a", at_h=0, work_h=100),
        JobToCome(name="b", at_h=10, work_h=50, within_h=200),
        JobToCome(name="c", at_h=20, work_h=50, within_h=60),
        JobToCome(name="d", at_h=30, work_h=10, nodes=2, within_h=5),
    ]


def test_a_month_by_hand():
    plan = plan_capacity(month(), own_usd_per_hour=1, burst_usd_per_hour=10, most=2, hours=730)
    none, one, two = plan.tried
    assert none.usd == 10 * (100 + 50 + 50 + 20)
    assert none.late_jobs == 1, "d has less time than work, wherever it runs"
    # one node: a runs at once, b waits for it and is on time, c cannot wait, d needs two nodes
    assert one.waits_h == [0, 90] and one.burst_jobs == 2
    assert one.usd == 730 + 10 * (50 + 20)
    assert one.utilisation == pytest.approx(150 / 730)
    # two nodes: c would wait until 60 and end at 110; it may until 80: bursts
    assert two.burst_jobs == 2
    assert plan.best.own_nodes == 1
    frame = plan.frame()
    assert list(frame.index) == [0, 1, 2] and frame.loc[1, "longest_wait_h"] == 90
    assert plan.to_dict()["best"] == 1 and json.dumps(plan.to_dict())


def test_jobs_from_a_file(tmp_path):
    file = tmp_path / "month.csv"
    file.write_text("name,at_h,work_h,nodes,within_h\na,0,10,2,\n,5,1,,9\n")
    first, second = read_jobs(file)
    assert (first.nodes, first.within_h) == (2, None)
    assert (second.name, second.nodes, second.within_h) == ("line 3", 1, 9.0)
    file.write_text("name,at_h,work_h\na,soon,10\n")
    with pytest.raises(PriceError, match="line 2"):
        read_jobs(file)
    with pytest.raises(PriceError, match="no jobs"):
        plan_capacity([], own_usd_per_hour=1, burst_usd_per_hour=1, most=1)


def test_the_command_plans(tmp_path):
    words = ["plan", "--work", "2h", "--deadline", "4h", "--futures", "5"]
    told = CliRunner().invoke(app, [*words, "--json"])
    assert {o["name"] for o in json.loads(told.output)["options"]} == {
        *("on-prem", "spot", "mixed", "on-demand")
    }
    assert "5 futures" in CliRunner().invoke(app, words).output
    file = tmp_path / "month.csv"
    file.write_text("name,at_h,work_h\na,0,10\n")
    month = ["plan", "--jobs", str(file)]
    assert "own nodes" in CliRunner().invoke(app, month).output
    page = tmp_path / "month.html"
    told = json.loads(CliRunner().invoke(app, [*month, "--json", "--plot", str(page)]).output)
    assert [one["own_nodes"] for one in told["tried"]] == [0, 1] and told["best"] in (0, 1)
    assert "Own " in page.read_text() and page.read_text().count("<rect") > 2
    assert isinstance(CliRunner().invoke(app, ["plan"]).exception, SpecError)
