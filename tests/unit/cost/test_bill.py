"""The bill: seconds from request to end, at the launch price; unknown stays unknown."""

from __future__ import annotations

import pytest

from rayburst.cost.bill import make_bill
from rayburst.fleet.events import NodeEvent


def event(t: float, kind: str, node: str, price: float | None = 3.6) -> NodeEvent:
    pool = node.rsplit("-", 1)[0]
    market = {"rack": "on-prem", "spot": "spot"}[pool]
    return NodeEvent(
        t=t, kind=kind, node=node, pool=pool, market=market, price_usd_per_hour=price, why="w"
    )


def test_a_bill_by_hand():
    events = [
        event(100.0, "requested", "rack-1", price=0.36),
        event(110.0, "up", "rack-1", price=0.36),
        event(200.0, "requested", "spot-1"),
        event(300.0, "gone", "spot-1"),
    ]
    bill = make_bill(reversed(events), now=600.0, on_demand_usd_per_hour=36.0)
    assert [(n.node, n.seconds) for n in bill.nodes] == [("rack-1", 500.0), ("spot-1", 100.0)]
    assert bill.usd == pytest.approx(500 * 0.36 / 3600 + 100 * 3.6 / 3600)
    assert bill.usd_if_on_demand == pytest.approx(600 * 36.0 / 3600)
    assert {m.market: m.seconds for m in bill.by_market} == {"on-prem": 500.0, "spot": 100.0}
    assert "98% saved" in bill.summary()


def test_an_unknown_price_is_not_zero():
    events = [event(0.0, "requested", "spot-1", price=None), event(0.0, "requested", "rack-1")]
    bill = make_bill(events, now=10.0, on_demand_usd_per_hour=None)
    assert not bill.usd_is_complete
    assert bill.usd == pytest.approx(10 * 3.6 / 3600)
    assert bill.usd_if_on_demand is None
    assert "at least" in bill.summary()
    assert "unknown" in str(bill)
    assert {m.market: m.seconds_of_unknown_price for m in bill.by_market} == {
        "on-prem": 0.0,
        "spot": 10.0,
    }
