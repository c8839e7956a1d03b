"""Scripts of a cloud in a box, traces as scripts, and what its market has."""

from __future__ import annotations

import numpy as np
import pytest

from rayburst.dev.cloud.market import ANY, Held, Market
from rayburst.dev.cloud.script import from_traces, parse_script
from rayburst.errors import SpecError
from rayburst.fleet.replay.traces import UNKNOWN, ZoneTrace

A, B = ("m6i.large", "z-a", "spot"), ("m6a.large", "z-a", "spot")


def trace(name: str, *count: int) -> ZoneTrace:
    return ZoneTrace(trace_set="t", name=name, tick_s=60.0, count=np.array(count, np.int64))


def test_a_script_is_read_in_the_order_of_its_times() -> None:
    text = """
- {at: 2m, fail: CreateFleet, code: RequestLimitExceeded, times: 5}
- {at: 0, capacity: 4, zone: z-a, type: m6i.large, notice: 30s}
- {at: 1.5m, price: 0.09 USD/h, zone: z-a}
"""
    first, second, third = parse_script(text, source="s")
    assert (first.amount, first.kind, first.notice_s) == (4.0, "m6i.large", 30.0)
    assert (second.at_s, second.amount, second.kind) == (90.0, 0.09, ANY)
    assert (third.amount, third.code, third.times) == ("CreateFleet", "RequestLimitExceeded", 5)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: x", "a script is a list of steps"),
        ("- {capacity: 1}", "it needs `at`"),
        ("- {at: 1s, explode: 1}", "needs one of capacity, price"),
        ("- {at: 1s, capacity: 1, quota: 1}", "has .'capacity', 'quota'."),
        ("- {at: 1s, capacity: 1}", "capacity needs zone"),
        ("- {at: 1s, capacity: 1, zone: a, hosts: 3}", "hosts means nothing to capacity"),
        ("- {at: soon, quota: 1}", "soon"),
        ("- {at: 1s, quota: 1, market: black}", "it is spot or on-demand"),
        ("- {at: 1s, price: unknown, zone: a}", "a price is dollars an hour"),
        ("- {at: 1s, quota: [", "is no YAML"),
    ],
)
def test_a_mistake_in_a_script_is_told(text: str, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        parse_script(text, source="s")


def test_a_trace_becomes_the_capacity_of_its_zone() -> None:
    steps = from_traces(
        [trace("one", 1, 1, 0, UNKNOWN, 0, 1), trace("many", 3, 3, 2, 2, 2, 2)],
        zones=("z-a", "z-b", "z-c"),
        hosts=4,
        notice_s=30,
    )
    assert [(step.at_s, step.zone, step.amount) for step in steps] == [
        (0.0, "z-a", 4.0),
        (0.0, "z-b", 3.0),
        (120.0, "z-a", 0.0),
        (120.0, "z-b", 2.0),
        (300.0, "z-a", 4.0),
    ]
    assert {step.notice_s for step in steps} == {30}
    with pytest.raises(SpecError, match=r"2 traces .* and 1 zones"):
        from_traces([trace("a", 1), trace("b", 1)], zones=("z-a",), hosts=1)


def test_a_zone_has_room_for_what_neither_its_type_nor_the_zone_forbids() -> None:
    market = Market(capacity={A: 2, (ANY, "z-a", "spot"): 3})
    held = [Held(id="1", place=A), Held(id="2", place=B)]
    assert market.room(A, held) == 1
    assert market.room(B, held) == 1
    assert market.room(B, [*held, Held(id="3", place=B)]) == 0
    assert market.room(("m6i.large", "z-a", "on-demand"), held) == float("inf")
    leaving = [Held(id="1", place=A, leaving=True), *held[1:]]
    assert market.room(A, leaving) == 2, "what was given notice makes no room and takes none"


def test_a_request_gets_the_cheapest_place_that_has_all_of_it() -> None:
    market = Market(capacity={A: 1}, prices={A[:2]: 0.01, B[:2]: 0.02})
    assert market.choice([A, B], 1, []) == 0
    assert market.choice([A, B], 2, []) == 1


def test_what_a_market_has_no_more_is_taken_from_those_that_came_last() -> None:
    held = [Held(id=str(n), place=A if n % 2 else B) for n in range(5)]
    market = Market(capacity={(ANY, "z-a", "spot"): 2})
    assert market.surplus(held) == ["2", "3", "4"]
    market.capacity[A] = 0
    assert market.surplus(held) == ["1", "3", "4"]
    assert Market().surplus(held) == []


def test_a_quota_counts_what_leaves() -> None:
    market = Market(quota={"spot": 2})
    held = [Held(id="1", place=A, leaving=True)]
    assert not market.over_quota("spot", 1, held)
    assert market.over_quota("spot", 2, held)
    assert not market.over_quota("on-demand", 9, held)
