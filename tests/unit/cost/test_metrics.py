"""Metrics say what events and ledger say; every query of the dashboard is of one that exists."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from cost_month import DAY_MS, START_MS, month
from prometheus_client import CollectorRegistry, generate_latest
from typer.testing import CliRunner

from rayburst.cli import app
from rayburst.cost.attribution import LaunchPrices, attribute, tell
from rayburst.cost.bill import make_bill
from rayburst.cost.metrics import METRICS, FleetMetrics, Sample, values_of
from rayburst.fleet.events import NodeEvent
from rayburst.report.grafana import dashboard

DOCS = Path(__file__).parents[3] / "docs" / "cost.md"
_LABELS = re.compile(r"(?:by|ignoring|on) \(([\w, ]+)\)")


def event(t: float, kind: str, node: str, why: str = "") -> NodeEvent:
    return NodeEvent(
        t=t, kind=kind, node=node, pool="spot-a", market="spot", price_usd_per_hour=0.9, why=why
    )


@pytest.fixture(scope="module")
def sample() -> Sample:
    facts = month(6)
    now_ms = START_MS + 31 * DAY_MS
    entries = attribute(
        tell(facts), prices=LaunchPrices(), period=(START_MS, now_ms), now_ms=now_ms
    )
    bill = make_bill(facts.events, now=now_ms / 1000, on_demand_usd_per_hour=None)
    noticed = event(START_MS / 1000 + 99, "notice", facts.events[0].node)
    return Sample(events=[*facts.events, noticed], bill=bill, entries=entries, pending=3)


def scraped(sample: Sample) -> str:
    registry = CollectorRegistry()
    registry.register(FleetMetrics(lambda: sample))
    return generate_latest(registry).decode()


def test_every_metric_is_scraped_with_its_labels(sample):
    text = scraped(sample)
    for name, (kind, words, labels) in METRICS.items():
        assert f"# TYPE {name} {kind}" in text
        assert words in text
        (line, *_) = [x for x in text.splitlines() if re.match(rf"{name}[{{ ]", x)]
        assert set(re.findall(r'(\w+)="', line)) == set(labels)
    assert "rayburst_pending_requests 3.0" in text


def test_values_are_those_of_bill_and_ledger(sample):
    values = values_of(sample)
    assert sum(values["rayburst_spent_usd_total"].values()) == pytest.approx(sample.bill.usd)
    by_purpose = sum(values["rayburst_purpose_usd"].values())
    assert by_purpose == pytest.approx(sum(values["rayburst_job_usd"].values()))
    living = {e.node for e in sample.events} - {e.node for e in sample.events if e.kind == "gone"}
    assert sum(values["rayburst_nodes"].values()) == len(living)


def test_states_and_interruptions_by_hand():
    events = [
        *(event(1, "requested", n) for n in "abcd"),
        *(event(2, "up", n) for n in "abc"),
        event(3, "notice", "a"),
        event(4, "gone", "b", "power cut: cable"),
        event(5, "gone", "c", "given back: idle for 60 s"),
    ]
    values = values_of(Sample(events=events))
    assert values["rayburst_nodes"] == {
        ("spot-a", "spot", "draining"): 1.0,
        ("spot-a", "spot", "starting"): 1.0,
    }
    assert values["rayburst_usd_per_hour"] == {("spot",): pytest.approx(1.8)}
    assert values["rayburst_interruptions_total"] == {("spot-a", "spot"): 2.0}


def test_every_query_of_the_dashboard_is_of_a_metric_that_exists():
    queries = [t["expr"] for panel in dashboard()["panels"] for t in panel["targets"]]
    asked = {name for query in queries for name in re.findall(r"rayburst_\w+", query)}
    assert asked == set(METRICS), "all of them are shown, and no other"
    for query in queries:
        known = {label for name in re.findall(r"rayburst_\w+", query) for label in METRICS[name][2]}
        for words in (*_LABELS.findall(query), *re.findall(r"\{(\w+)=", query)):
            assert {word.strip() for word in words.split(",")} <= known, query


def test_panels_do_not_overlap_and_the_command_prints_them():
    places = [tuple(panel["gridPos"].values()) for panel in dashboard()["panels"]]
    assert len(set(places)) == len(places)
    assert json.loads(CliRunner().invoke(app, ["dashboard"]).output) == dashboard()


def test_the_page_names_every_metric_and_its_labels():
    text = DOCS.read_text()
    for name, (_, _, labels) in METRICS.items():
        assert f"| `{name}` | {', '.join(labels)} |".replace("|  |", "| |") in text
