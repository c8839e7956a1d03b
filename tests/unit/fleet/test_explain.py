"""What a fleet file means in words, and what those words must not hide."""

from __future__ import annotations

from rayburst.fleet.explain import explain, worst_case_usd_per_hour
from rayburst.fleet.spec import FleetSpec, default_path

ONE = """\
name: a
object_store: {kind: embedded}
limits: {budget: 6 USD}
pools:
  - {name: p, kind: process, market: spot, shape: {cpus: 1, memory: 1GiB}, price: 2 USD/h,
     hosts: {min: 1, max: 3}}
"""


def test_the_default_fleet_in_words() -> None:
    spec = FleetSpec.load(default_path())
    text = explain(spec)
    assert "fleet local: up to 8 hosts in 4 pools" in text
    assert "asked first: rack (on-prem), then spot-a, spot-b (spot)" in text
    assert "only for work that asks for on-demand, or whose deadline needs it: cloud" in text
    assert "all hosts together: 10.56 USD an hour" in text
    assert "without on-demand: 4.44 USD an hour" in text
    assert "without work no host runs" in text
    assert "budget: none is set" in text
    assert round(worst_case_usd_per_hour(spec.pools), 6) == 10.56


def test_hosts_that_always_run_and_a_budget_are_counted() -> None:
    text = explain(FleetSpec.parse(ONE))
    assert "hosts that always run: 2.00 USD an hour" in text
    assert "budget: 6.00 USD; with all hosts it lasts 60 minutes" in text
    assert "without on-demand" not in text


def test_an_unknown_price_is_named_wherever_it_matters() -> None:
    text = explain(FleetSpec.parse(ONE.replace("2 USD/h", "unknown")))
    assert "at an unknown price" in text
    assert "all hosts together: 0.00 USD an hour and what p may cost (unknown)" in text
    assert "always run: 0.00 USD an hour and what p may cost (unknown)" in text
    assert "hosts of p cannot be counted against it" in text


def test_a_fleet_of_on_demand_hosts_alone_says_what_waits() -> None:
    text = explain(FleetSpec.parse(ONE.replace("market: spot", "market: on-demand")))
    assert "work that does not ask for on-demand waits for ever" in text
    assert "asked first" not in text


def test_a_bucket_and_a_free_fleet() -> None:
    store = "{uri: s3://bucket, endpoint: http://10.0.0.5:8333}"
    text = explain(
        FleetSpec.parse(ONE.replace("{kind: embedded}", store).replace("2 USD/h", "0 USD/h"))
    )
    assert "objects are kept in s3://bucket at http://10.0.0.5:8333" in text
    assert "budget: 6.00 USD; no host costs anything" in text
