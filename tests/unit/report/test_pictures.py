"""Forecasts and load tests as pages: whole, loading nothing, with the numbers they were given."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from rayburst.cost import plans
from rayburst.cost.forecast import Forecast, forecast
from rayburst.fleet.spec import FleetSpec, default_path
from rayburst.report.latency_page import LoadCell, cells_of, latency_page


@pytest.fixture(scope="module")
def told() -> Forecast:
    needs = plans.needs_of("24h", "0.2h")
    needs = plans.limited(needs, nodes=1, deadline="30h", budget="60 USD")
    terms = plans.terms_of(FleetSpec.load(default_path()))
    return forecast(needs, terms, plans.believe(None), rng=np.random.default_rng(0), paths=8)


def whole(html: str) -> str:
    assert html.startswith("<!DOCTYPE html>")
    assert not re.search(r"https?://(?!www\.w3\.org)", html) and "<script" not in html
    drawn = re.findall(r"<svg.*?</svg>", html, re.S)
    assert drawn
    for one in drawn:
        ElementTree.fromstring(one)
    return html


def test_a_forecast_is_a_page_a_frame_and_json(told):
    html = whole(told.html())
    assert "deadline 30 h" in html and "budget $60.00" in html
    for option in told.options:
        assert option.usd is not None and f">{option.name}<" in html
    frame = told.frame()
    assert list(frame.index) == ["on-prem", "spot", "mixed", "on-demand"]
    assert frame.loc["on-demand", "usd_middle"] == told.option("on-demand").usd.middle
    assert {o["name"] for o in told.to_dict()["options"]} == set(frame.index)
    assert "iframe" in told._repr_html_()


def test_an_option_that_cannot_be_had_says_why():
    spec = FleetSpec.parse("""
name: owned
object_store: {kind: embedded}
pools:
  - {name: rack, kind: process, market: on-prem, shape: {cpus: 1, memory: 1GiB},
     price: 0.35 USD/h, hosts: {max: 1}}
""")
    needs = plans.needs_of("2h", "0.1h")
    rng = np.random.default_rng(0)
    told = forecast(needs, plans.terms_of(spec), plans.believe(None), rng=rng, paths=4)
    missing = told.option("spot")
    assert missing.usd is None and missing.why_not in whole(told.html())
    assert np.isnan(told.frame().loc["spot", "usd_middle"])


def test_a_load_test_shows_each_server_at_each_size():
    runs = [
        {"server": server, "load": "closed", "size": size, "round": index, "rps": 100.0 + index,
         "p50_ms": 5.0, "p95_ms": 8.0, "p99_ms": 9.0 + index, "errors": 0}
        for server in ("rayburst", "<other>") for size in (1, 32) for index in range(3)
    ]  # fmt: skip
    cells = cells_of([*runs, {**runs[0], "load": "poisson"}], load="closed")
    assert [(c.server, c.size, c.p99_ms, c.requests_per_s) for c in cells[:2]] == [
        ("rayburst", 1.0, 10.0, 101.0),
        ("rayburst", 32.0, 10.0, 101.0),
    ]
    html = whole(latency_page("side by side", cells, lead="two cores"))
    assert "&lt;other&gt;" in html and "32 at once" in html and "5.0 ms … 10 ms" in html


def test_one_server_without_the_95th_percentile_is_drawn_too():
    cell = LoadCell(server="lm", size=8, p50_ms=120.0, p99_ms=400.0, requests_per_s=55.0)
    assert "8 at once" in whole(latency_page("lm", [cell]))
