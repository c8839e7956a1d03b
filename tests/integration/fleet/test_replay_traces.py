"""Reading recorded markets, and the `simulate` command over them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from rayburst.errors import DataError, SpecError
from rayburst.fleet.replay.memberships import read_membership
from rayburst.fleet.replay.results import Report
from rayburst.fleet.replay.simulate import POLICIES, Settings, prior_without, simulate
from rayburst.fleet.replay.traces import UNKNOWN, Polarity, read_traces
from rayburst.fleet.simulate_cli import simulate as command

ROW = {
    *("trace_set", "zone", "fraction", "policy", "cost_ratio", "misses"),
    *("starts", "spot_h", "on_demand_h"),
}


def write(path: Path, data: list[int], **metadata: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"metadata": {"gap_seconds": 600, **metadata}, "data": data}))


def test_windows_are_laid_back_to_where_they_were_cut(tmp_path: Path) -> None:
    write(tmp_path / "set" / "z" / "0.json", [0, 0, 1], start_time=10)
    write(tmp_path / "set" / "z" / "1.json", [1, 0], start_time=12)
    write(tmp_path / "set" / "z" / "2.json", [1], start_time=15)
    (trace,) = read_traces(tmp_path / "set")
    assert trace.name == "z" and trace.trace_set == "set"
    assert trace.count.tolist() == [1, 1, 0, 1, UNKNOWN, 0]
    assert [(w.start, w.stop) for w in trace.windows] == [(0, 3), (2, 4), (5, 6)]
    assert read_traces(tmp_path / "set" / "z")[0].windows == trace.windows


def test_windows_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "z" / "0.json", [0, 0], start_time=0)
    write(tmp_path / "z" / "1.json", [1, 0], start_time=1)
    with pytest.raises(DataError, match="contradicts"):
        read_traces(tmp_path / "z")


def test_polarity_is_known_by_the_start_time_and_can_be_told(tmp_path: Path) -> None:
    write(tmp_path / "a.json", [1, 0, 3])
    assert read_traces(tmp_path / "a.json")[0].count.tolist() == [1, 0, 3]
    with pytest.raises(DataError, match="only 0 and 1"):
        read_traces(tmp_path / "a.json", Polarity.UNAVAILABLE)
    write(tmp_path / "w" / "0.json", [1, 0], start_time=0)
    told = read_traces(tmp_path / "w", Polarity.AVAILABLE)[0]
    assert told.count.tolist() == [1, 0]


@pytest.mark.parametrize(
    "content",
    ["{", "[]", '{"metadata": {}, "data": [1]}', '{"metadata": {"gap_seconds": 1}, "data": []}'],
)
def test_what_is_no_trace_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(content)
    with pytest.raises(DataError, match=r"bad\.json"):
        read_traces(path)


def test_a_path_without_traces_says_what_to_give(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(DataError, match="give a"):
            read_traces(path)


def test_memberships_become_counts(tmp_path: Path) -> None:
    events = tmp_path / "events.csv"
    events.write_text("0,add,a\n0,add,b\n60000,remove,a\n180000,add,c\n")
    assert read_membership(events).count.tolist() == [2, 1, 1, 2]
    counts = tmp_path / "counts.csv"
    counts.write_text("time_s,nodes\n0,5\n120,4\n")
    assert read_membership(counts).count.tolist() == [5, 5, 4]
    counts.write_text("a,b\nc,d\n")
    with pytest.raises(DataError, match="no membership"):
        read_membership(counts)


@pytest.fixture(scope="module")
def zones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two made zones on one clock, two days long."""
    folder = tmp_path_factory.mktemp("traces") / "made"
    random = np.random.default_rng(7)
    for name in ("east", "west"):
        flips = random.random(288) < 0.08
        write(folder / f"{name}.json", (np.cumsum(flips) % 2).tolist())
    return folder


SHORT = Settings(work_s=6 * 3600.0, fractions=(0.6, 0.8), every_s=6 * 3600.0)


@pytest.fixture(scope="module")
def report(zones: Path) -> Report:
    return simulate(zones, SHORT)


def test_every_policy_has_a_row_for_each_zone_and_fraction(report: Report) -> None:
    found = report.as_json()
    assert {(r["zone"], r["fraction"], r["policy"]) for r in found["rows"]} == {
        (z, f, p) for z in ("east", "west") for f in (0.6, 0.8) for p in POLICIES
    }
    assert all(set(r) >= ROW for r in found["rows"])
    assert set(found["mean"]) == {"0.6", "0.8"} and set(found["mean"]["0.6"]) == set(POLICIES)
    assert report.misses() == 0


def test_nothing_beats_the_optimum_and_on_demand_costs_all(report: Report) -> None:
    for by in report.mean().values():
        assert all(cost >= by["omniscient"] - 1e-6 for cost in by.values())
        assert by["on-demand"] == pytest.approx(1 + 720 / (6 * 3600))


def test_the_same_replay_finds_the_same(zones: Path, report: Report) -> None:
    assert simulate(zones, SHORT).as_json() == report.as_json()


def test_many_zones_make_one_market(zones: Path, report: Report) -> None:
    many = simulate(zones, replace(SHORT, many_zones=True))
    assert {r.zone for r in many.rows} == {"multi:east,west"}
    best = min(r.cost_ratio for r in report.rows if r.policy == "omniscient" and r.fraction == 0.8)
    assert many.mean()["0.8"]["omniscient"] <= best + 1e-6
    assert many.misses() == 0


def test_settings_that_make_no_sense_are_refused(zones: Path) -> None:
    for wrong, text in (
        ({"policies": ("best",)}, "known: rayburst"),
        ({"fractions": (1.5,)}, "up to 1"),
        ({"nodes": 0}, "start at 1"),
    ):
        with pytest.raises(SpecError, match=text):
            Settings(**wrong)
    with pytest.raises(DataError, match="too short"):
        simulate(zones, Settings())
    with pytest.raises(SpecError, match="one node only"):
        replace(SHORT, nodes=2, policies=("deadline-policy",))


def test_a_gang_may_use_many_zones_one_at_a_time(tmp_path: Path) -> None:
    """Each zone is short of a node half of the time, and together they never are."""
    for name, first in (("east", 2), ("west", 1)):
        other = 3 - first
        write(tmp_path / "made" / f"{name}.json", ([first] * 72 + [other] * 72) * 2)
    settings = replace(SHORT, work_s=12 * 3600.0, nodes=2, policies=("rayburst",))
    alone, many = (
        simulate(tmp_path / "made", replace(settings, many_zones=together))
        for together in (False, True)
    )
    assert alone.misses() == many.misses() == 0
    assert {r.zone for r in many.rows} == {"multi:east,west"}
    assert many.mean()["0.8"]["rayburst"] < alone.mean()["0.8"]["rayburst"]


def test_the_rule_inside_the_planner_can_be_asked_alone(zones: Path, report: Report) -> None:
    alone = simulate(zones, replace(SHORT, policies=("deadline-policy",)))
    for fraction, by in alone.mean().items():
        assert by["deadline-policy"] == pytest.approx(report.mean()[fraction]["rayburst"])


def test_the_prior_of_a_replay_has_not_seen_its_zones() -> None:
    east = ["us-east-1c_v100_1", "us-east-1f_v100_1"]
    assert prior_without(east) != prior_without([])


def run(*args: str) -> object:
    app = typer.Typer()
    app.command()(command)
    return CliRunner().invoke(app, args, catch_exceptions=True)


def test_the_command_prints_a_table_and_writes_json_and_a_page(zones: Path, tmp_path: Path) -> None:
    out, page = tmp_path / "out.json", tmp_path / "out.html"
    result = run(
        *("--traces", str(zones), "--work", "6h", "--fraction", "0.8", "--changeover", "0.1h"),
        *("--every", "12h", "--json", str(out), "--plot", str(page)),
    )
    assert result.exit_code == 0, result.output
    assert "uniform-progress-idle" in result.output and "mean of zones" in result.output
    assert set(json.loads(out.read_text())) >= {"rows", "mean"}
    text = page.read_text()
    assert "<svg" in text and "omniscient" in text and "<script" not in text


@pytest.mark.parametrize(
    ("option", "value"),
    [("--fraction", "high"), ("--zones", "two"), ("--polarity", "odd"), ("--work", "48")],
)
def test_the_command_refuses_with_the_right_way(zones: Path, option: str, value: str) -> None:
    result = run("--traces", str(zones), option, value)
    assert isinstance(result.exception, SpecError)


def test_the_help_teaches() -> None:
    result = run("--help")
    assert "--changeover" in result.output and "omniscient" in result.output
