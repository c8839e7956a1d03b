"""The page about a run is whole, loads nothing, and its numbers are the ledger's and the log's."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from rayburst.cost.attribution import LaunchPrices, attribute, tell
from rayburst.cost.entries import NANO, NOBODY, Entry, Line, Owner
from rayburst.cost.facts import Facts, Hold
from rayburst.fleet.events import NodeEvent
from rayburst.fleet.spec import FleetSpec
from rayburst.report.history import read_run
from rayburst.report.run_page import RunStory, of_run, tell_run
from rayburst.train.goodput import goodput

SPEC = FleetSpec.parse("""
name: lab
object_store: {kind: embedded}
pools:
  - {name: onprem, kind: process, market: on-prem, shape: {cpus: 1, memory: 1GiB},
     price: 0.0212 USD/h, hosts: {max: 2}}
  - {name: spot-a, kind: process, market: spot, shape: {cpus: 1, memory: 1GiB},
     price: 0.0148 USD/h, hosts: {max: 4}}
  - {name: cloud, kind: process, market: on-demand, shape: {cpus: 1, memory: 1GiB},
     price: 0.0496 USD/h, hosts: {max: 4}}
""")


def run_told(story, owner: Owner | None = None, more: Sequence[Entry] = ()) -> RunStory:
    """The story with the ledger's lines; those of the run are `owner`'s, if given."""
    events = [NodeEvent(**event) for event in story.events]
    # what a fleet really writes of a host that was cut off
    events = [
        NodeEvent(**{**event, "why": "power cut: test"}) if event["node"] == "spot-b-91d0" else e
        for event, e in zip(story.events, events, strict=True)
    ]
    now = max(event.t for event in events) + 10
    facts = Facts(events=events, runs={"demo <1>": story.log})
    hour = 3_600_000
    first = round(min(event.t for event in events) * 1000) // hour * hour
    entries = [
        entry
        for start in range(first, round(now * 1000), hour)
        for entry in attribute(
            tell(facts),
            prices=LaunchPrices(),
            period=(start, start + hour),
            now_ms=round(now * 1000),
        )
    ]
    if owner is not None:
        entries = [
            replace(e, line=replace(e.line, owner=owner)) if e.line.owner.job == "demo <1>" else e
            for e in entries
        ]
    return tell_run("demo <1>", events, story.log, entries=[*entries, *more], spec=SPEC, now=now)


@pytest.fixture
def told(story) -> RunStory:
    return run_told(story)


def test_the_page_is_whole_loads_nothing_and_runs_nothing(told):
    html = told.html()
    assert not re.search(r"https?://(?!www\.w3\.org)", html)
    assert "<script" not in html
    assert "demo &lt;1&gt;" in html and "demo <1>" not in html
    for drawn in re.findall(r"<svg.*?</svg>", html, re.S):
        ElementTree.fromstring(drawn)
    for title in ("Nodes", "Loss", "Utilisation", "Cost against alternatives"):
        assert f"<h2>{title}</h2>" in html


def test_its_dollars_are_the_ledgers_and_alternatives_are_the_same_node_time(told):
    assert told.usd == pytest.approx(sum(told.usd_by_purpose.values()))
    assert told.usd is not None and told.usd > 0
    assert set(told.alternatives) == {"on-prem", "spot", "on-demand"}
    known = {market: usd for market, usd in told.alternatives.items() if usd is not None}
    assert known["on-demand"] / known["spot"] == pytest.approx(0.0496 / 0.0148)
    assert known["spot"] < told.usd < known["on-demand"]


def test_nodes_that_a_submission_held_and_objects_that_the_run_keeps_are_both_its_dollars(
    told, story
):
    kept = Line(
        start_ms=0,
        end_ms=1,
        node="",
        pool="",
        market="",
        owner=Owner(job="demo <1>", model="demo <1>"),
        purpose="storage",
        unit="byte-seconds",
    )
    stored = Entry(line=kept, quantity=1, nano_usd=NANO)
    both = run_told(story, Owner(job="raysubmit_8c1f", tenant="default"), [stored])
    assert both.usd == pytest.approx(told.usd + 1.0)
    assert both.alternatives == told.alternatives


def test_node_time_of_submissions_that_trained_one_run_has_it_as_model(story):
    tenures = sorted(
        read_run(story.log).tenures, key=lambda one: (one.start_ms, one.host, one.rank)
    )
    middle = tenures[len(tenures) // 2].start_ms
    server = Owner(job="serve lm", model="LanguageModel")

    def hold(number: int, owner: Owner) -> Hold:
        one = tenures[number]
        id = f"{owner.job}-{number}"
        return Hold(id=id, node=one.host, owner=owner, start_ms=one.start_ms, end_ms=one.end_ms)

    first, again = (Owner(job=f"raysubmit_{n}", tenant="blue") for n in "ab")
    holds = [
        hold(number, first if one.start_ms < middle else again)
        for number, one in enumerate(tenures)
    ]
    holds += [hold(number, server) for number in range(len(tenures))]
    events = [NodeEvent(**event) for event in story.events]
    runs = {"demo <1>": story.log}

    def owners(facts: Facts) -> set[Owner]:
        end_ms = round((max(event.t for event in events) + 10) * 1000)
        period = (round(min(event.t for event in events) * 1000), end_ms)
        found = attribute(tell(facts), prices=LaunchPrices(), period=period, now_ms=end_ms)
        return {entry.line.owner for entry in found} - {NOBODY}

    named = {replace(owner, model="demo <1>") for owner in (first, again)}
    assert owners(Facts(events=events, holds=holds, runs=runs)) == {*named, server}
    two = Facts(events=events, holds=holds, runs={**runs, "another": story.log})
    assert owners(two) == {first, again, server}, "a search is no model"


def test_all_submissions_of_a_run_are_drawn_and_the_time_between_them_is_no_standstill(
    submitted_again,
):
    told = run_told(submitted_again)
    first, second = told.run.windows
    assert told.span[1] == second[1] == round(max(r["t"] for r in submitted_again.log) * 1000)
    assert 370_000 < second[0] - first[1] < 380_000
    hosts = {tenure.host for tenure in told.run.tenures if tenure.start_ms >= second[0]}
    assert hosts == {"spot-c-10aa", "spot-c-20bb"} < {life.node for life in told.lives}
    assert all(t.end_ms <= first[1] for t in told.run.tenures if t.host not in hosts)
    ends = [tenure.end_ms for tenure in told.run.tenures if tenure.host in hosts]
    assert ends == [second[1]] * 2
    assert not any(start < second[0] and first[1] < end for start, end in told.run.changeovers)
    assert {one.node for one in told.interruptions} == {"spot-a-3f2c", "spot-b-91d0"}
    words = re.sub(r"<[^>]+>", " ", told.html())
    assert "6 min 14 s of them between submissions, on 8 nodes" in words
    assert words.count("workers start: ") == 2
    spent = told.summary.goodput
    before = goodput([r for r in submitted_again.log if r["t"] * 1000 <= first[1]])
    took_s = 2 * (second[1] - second[0]) / 1000
    assert spent.total_s == pytest.approx(before.total_s + took_s, abs=0.5)


def test_dollars_of_submissions_that_nobody_named_are_those_of_each_in_its_own_time(story):
    read = read_run(story.log)
    first = read.windows[0]
    later = replace(
        read,
        windows=[first, (first[1] + 9_000_000, first[1] + 9_100_000)],
        tenures=[
            *read.tenures,
            *(
                replace(t, start_ms=t.start_ms + 9_000_000, end_ms=t.end_ms + 9_000_000)
                for t in read.tenures
            ),
        ],
    )

    def entry(job: str, window: tuple[int, int], quantity: int) -> Entry:
        line = Line(
            start_ms=window[0],
            end_ms=window[1],
            node="onprem-1",
            pool="onprem",
            market="on-prem",
            owner=Owner(job=job),
            purpose="training",
        )
        return Entry(line=line, quantity=quantity, nano_usd=NANO)

    one, two = later.windows
    entries = [
        entry("a", one, 900),
        entry("server", one, 10),
        entry("b", two, 300),
        entry("server", two, 20),
    ]
    assert {e.line.owner.job for e in of_run(entries, "mine", later)} == {"a", "b"}


def test_interruptions_say_what_they_cost(told):
    kinds = {one.node: (one.kind, one.steps_lost) for one in told.interruptions}
    assert kinds["spot-b-91d0"][0] == "cut" and kinds["spot-b-91d0"][1] == 17
    assert "power cut" in told.html()


def test_a_story_is_a_frame_a_file_and_json(told, tmp_path):
    frame = told.frame()
    assert len(frame) == len(told.run.steps)
    assert set(frame[frame.redone].step) and frame.loss.notna().all()
    assert told.save(tmp_path / "run.html").read_text().startswith("<!DOCTYPE html>")
    as_json = told.to_dict()
    assert as_json["goodput"]["steps_redone"] == 17
    seconds = as_json["goodput"]["seconds"]
    assert sum(seconds.values()) == pytest.approx(as_json["goodput"]["total_s"])
    assert f"waited for data for {as_json['data_wait_share']:.2%}" in told.html()
    assert as_json["usd"] == told.usd
    assert round(told.usd * NANO) > 0


def test_a_run_that_never_started_says_so():
    empty = tell_run("none", [], [], entries=[], spec=SPEC, now=1000.0)
    assert empty.usd is None
    assert "unknown" in empty.html()
