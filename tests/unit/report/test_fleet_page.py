"""The page about a fleet is whole, loads nothing, and its numbers are the statement's."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
from cost_month import DAY_MS, START_MS, month

from rayburst.cost.attribution import LaunchPrices, attribute, tell
from rayburst.cost.entries import PURPOSES
from rayburst.cost.statement import make_statement
from rayburst.fleet.events import NodeEvent
from rayburst.report import money
from rayburst.report.fleet_page import FleetStory, tell_fleet
from rayburst.report.history import NodeLife
from rayburst.report.over_time import hosts_over_time, spent_over_time

NOW_MS = START_MS + 31 * DAY_MS


def event(t: float, kind: str, node: str, why: str = "", deadline: float | None = None):
    return NodeEvent(
        t=t,
        kind=kind,
        node=node,
        pool="spot",
        market="spot",
        price_usd_per_hour=0.9,
        why=why,
        deadline=deadline,
    )


@pytest.fixture(scope="module")
def story() -> FleetStory:
    facts = month(8)
    began = START_MS / 1000
    events = [
        *facts.events,
        event(began, "requested", "spot-x"),
        event(began + 900, "notice", "spot-x", deadline=began + 1020),
        event(began + 1020, "gone", "spot-x"),
        event(began, "requested", "spot-y"),
        event(began + 1500, "gone", "spot-y", "power cut: <cable>"),
    ]
    entries = attribute(
        tell(facts), prices=LaunchPrices(), period=(START_MS, NOW_MS), now_ms=NOW_MS
    )
    return tell_fleet(
        "lab & co",
        events,
        statement=make_statement(entries, by="job"),
        now=NOW_MS / 1000,
        on_demand_usd_per_hour=3.06,
    )


def test_the_page_is_whole_loads_nothing_and_runs_nothing(story):
    html = story.html()
    body = html[html.index("<body>") : html.index("</html>")]
    ElementTree.fromstring(body)  # every element is closed
    assert "lab &amp; co" in html
    assert not re.search(r"<script|<link|<img|(?:src|href)=|url\((?!#)", html)
    assert "prefers-color-scheme:dark" in html and "@media print" in html


def test_its_numbers_are_those_of_the_statement(story):
    html = story.html()
    assert f"${story.statement.usd:,.2f}" in html and "at least" in html
    for row in story.statement.rows:
        assert f"<td>{row.key}</td><td>${row.usd:,}</td>" in html
    assert "<b>1</b> with notice" in html and "<b>1</b> without" in html
    assert "have no known price" in html


def test_frame_and_json_hold_every_stay(story):
    frame = story.frame()
    assert len(frame) == len(story.lives) == len(story.to_dict()["lives"])
    assert set(frame["market"]) == {"on-prem", "spot", "on-demand"}
    assert "<iframe" in story._repr_html_()


def test_an_empty_fleet_has_a_page():
    empty = tell_fleet(
        "new", [], statement=make_statement([]), now=1000.0, on_demand_usd_per_hour=None
    )
    assert "No node events were recorded" in empty.html()
    assert empty.frame().empty


def test_every_purpose_has_a_look():
    assert set(money.LOOKS) == set(PURPOSES)


def test_many_rows_are_summed_and_none_is_left_out(story):
    rows = money.money_bars(story.statement)
    hidden = len(story.statement.rows) - rows.count('class="strong"') + 1
    assert (f"{hidden} others" in rows) == (hidden > 1)


def life(start: int, end: int | None, price: float | None = 3.6, market: str = "spot") -> NodeLife:
    return NodeLife(
        node=f"n{start}",
        pool="p",
        market=market,
        price_usd_per_hour=price,
        requested_ms=start,
        gone_ms=end,
    )


def test_hosts_are_counted_where_they_lived():
    lives = [life(0, 2000), life(1000, None), life(1000, 1500, market="on-prem")]
    drawn = hosts_over_time(lives, (0, 4000))
    assert "3 at the most" in drawn
    assert drawn.index("on-prem hosts") < drawn.index("spot hosts")


def test_dollars_grow_at_the_price_and_unknown_adds_nothing():
    lives = [life(0, 3_600_000), life(0, None, price=None)]
    drawn = spent_over_time(lives, (0, 7_200_000), 10.0)
    assert "paid $3.60" in drawn
    assert "all on-demand $30.00" in drawn
    assert "all on-demand" not in spent_over_time(lives, (0, 7_200_000), None)
