"""The page: well-formed, self-contained, and it says what it was given."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from typing import Any

import pytest

from rayburst.report import numbers, style, svg
from rayburst.report.demo import render


def _tree(html: str) -> ElementTree.Element:
    assert html.startswith("<!DOCTYPE html>")
    return ElementTree.fromstring(html.removeprefix("<!DOCTYPE html>"))


def _words(html: str) -> str:
    """All text of the page; a space between elements, runs of white space as one."""
    return " ".join(" ".join(_tree(html).itertext()).split())


def _page(story: Any) -> str:
    return render(story.report, node_events=story.events, run_log=story.log)


def test_page_is_well_formed_and_loads_nothing(story: Any) -> None:
    html = _page(story)
    tree = _tree(html)
    tags = {element.tag for element in tree.iter()}
    assert not tags & {"script", "link", "img", "iframe", "object", "embed", "image", "use"}
    assert not re.search(r"https?:|@import|src=|href=", html)
    assert all(ref.startswith("#") for ref in re.findall(r"url\(([^)]*)\)", html))
    ids = {e.get("id") for e in tree.iter() if e.get("id")}
    assert {ref[1:] for ref in re.findall(r"url\(([^)]*)\)", html)} <= ids
    assert len(html) < 200_000


def test_every_colour_used_is_defined_in_light_and_dark(story: Any) -> None:
    assert style.LIGHT.keys() == style.DARK.keys()
    used = set(re.findall(r"var\(--([a-z-]+)\)", _page(story)))
    assert used <= style.LIGHT.keys()


def test_figures_are_shown_with_units(story: Any) -> None:
    words = _words(_page(story))
    for figure in (
        "Interruptions survived 2",
        "3.071 bits per byte",
        "4.842",
        "1.771 below it",
        "notice 30 s: 14 s gap, 0 steps lost",
        "power cut: 23 s gap, 17 steps lost",
        "$0.00536",
        "$0.0144",
        "63% less",
        "181 ms",
        "403 ms",
        "300 requests , 0 errors",
        "164 requests per second",
        "3 to 4 workers",
        "5 min 16 s",
        "ray 2.60.0",
        "demo-0413",
    ):
        assert figure in words, figure


def test_every_node_phase_and_world_size_is_drawn(story: Any) -> None:
    words = _words(_page(story))
    for event in story.events:
        assert event["node"] in words
    for phase in story.report["phases"]:
        assert f"phase: {phase['name']} {phase['name']}" in words  # tool tip and label
    assert "17 steps lost and computed again" in words
    saved = [r for r in story.log if r["kind"] == "committed"]
    assert words.count("checkpoint saved") == len(saved) > 5
    assert words.count("training goes on") == 3  # two restarts and the legend


def test_a_save_that_failed_is_no_checkpoint(story: Any) -> None:
    story.log[:] = [r for r in story.log if r["kind"] != "committed"]
    assert "checkpoint saved" not in _words(_page(story))


def test_an_empty_report_says_unknown() -> None:
    words = _words(render({}, node_events=[], run_log=[]))
    assert "Validation unknown" in words
    assert "Interruptions unknown not in the report" in words
    assert "this run unknown all on-demand unknown" in words
    assert "nothing was served" in words
    assert "No node events were recorded." in words
    assert "0.000" not in words and "$0" not in words


def test_unknown_prices_stay_unknown(story: Any) -> None:
    story.report["cost"] = {"usd": None, "usd_if_on_demand": None}
    for event in story.events:
        if event["market"] == "spot":
            event["price_usd_per_hour"] = None
    words = _words(_page(story))
    assert "Cost unknown all on-demand unknown a price is not known" in words
    assert re.search(r"on-prem 9 min 54 s \$0.0212 spot 7 min 32 s unknown", words)
    assert "% less" not in words


def test_no_interruption_is_not_called_survival_of_one(story: Any) -> None:
    story.report["interruptions"] = []
    words = _words(_page(story))
    assert "Interruptions survived 0 no node was taken away" in words
    assert "Trained, then served" in words


def test_a_failed_job_does_not_claim_success(story: Any) -> None:
    story.report["job"]["status"] = "FAILED"
    words = _words(_page(story))
    assert "Training did not finish" in words
    assert "survived" not in words


@pytest.mark.parametrize("hostile", ["<script>alert(1)</script>", '"><b>', "a&b"])
def test_all_text_is_escaped(story: Any, hostile: str) -> None:
    story.report["job"].update(id=hostile, run=hostile, status=hostile)
    story.report["versions"] = {hostile: hostile}
    story.report["phases"][2]["name"] = hostile
    story.report["interruptions"][0].update(node=hostile, kind=hostile)
    for event in story.events:
        event.update(node=hostile, market=hostile, pool=hostile)
    html = _page(story)
    assert not {e.tag for e in _tree(html).iter()} & {"script"}
    assert hostile in _words(html)


def test_a_loss_that_is_not_a_number_is_left_out(story: Any) -> None:
    for record in story.log:
        if record["kind"] == "step":
            record["loss"] = float("nan")
    html = _page(story)
    assert "nan" not in html.lower()
    _tree(html)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (numbers.seconds(None), "unknown"),
        (numbers.seconds(8.42), "8.4 s"),
        (numbers.seconds(84), "84 s"),
        (numbers.seconds(724), "12 min 4 s"),
        (numbers.seconds(11520), "3 h 12 min"),
        (numbers.usd(12.4), "$12.40"),
        (numbers.usd(0.0312), "$0.0312"),
        (numbers.usd(0.0), "$0.00"),
        (numbers.usd(0.5), "$0.500"),
        (numbers.milliseconds(1240), "1.24 s"),
        (numbers.milliseconds(8.4), "8.4 ms"),
        (numbers.count(1, "step"), "1 step"),
        (numbers.count(1204, "step"), "1,204 steps"),
        (numbers.percent(1, 0), "unknown"),
        (numbers.percent(0.5, 100), "0.5%"),
        (numbers.clock(270), "4:30"),
        (numbers.clock(7380), "2:03:00"),
    ],
)
def test_numbers_read_well(written: str, expected: str) -> None:
    assert written == expected


def test_ticks_are_round_and_inside() -> None:
    assert svg.ticks(2.1, 8.0, 6) == [3, 4, 5, 6, 7, 8]
    assert svg.ticks(0, 1, 5) == [0, 0.2, 0.4, 0.6, 0.8, 1]
    assert svg.ticks(5, 5, 6) == [5]
    assert svg.clock_ticks(314, 10) == [0, 60, 120, 180, 240, 300]
    assert svg.Scale(low=3, high=3, start=1, stop=9)(3) == 1
