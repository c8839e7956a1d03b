"""Every node-second is counted once, whatever the logs hold."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from rayburst.report.history import node_lives
from rayburst.report.spend import PURPOSES, spend, summed

NODES = ("a", "b", "c")
times = st.floats(min_value=1000, max_value=1400, allow_nan=False)


def _events() -> st.SearchStrategy[list[dict[str, Any]]]:
    return st.lists(
        st.fixed_dictionaries(
            {
                "t": times,
                "kind": st.sampled_from(["requested", "up", "notice", "draining", "gone"]),
                "node": st.sampled_from(NODES),
                "pool": st.just("p"),
                "market": st.sampled_from(["on-prem", "spot"]),
                "price_usd_per_hour": st.none(),
                "why": st.just(""),
            }
        ),
        max_size=25,
    )


def _log() -> st.SearchStrategy[list[dict[str, Any]]]:
    rank = {"t": times, "rank": st.integers(0, 2), "step": st.integers(0, 30)}
    world = {**rank, "world": st.integers(1, 3)}
    return st.lists(
        st.one_of(
            st.fixed_dictionaries(
                {**world, "kind": st.just("start"), "host": st.sampled_from(NODES)}
            ),
            st.fixed_dictionaries(
                {
                    **world,
                    "kind": st.just("step"),
                    "loss": st.just(1.0),
                    "duration_s": st.floats(0, 20),
                }
            ),
            st.fixed_dictionaries(
                {**rank, "kind": st.just("checkpoint"), "blocked_s": st.floats(0, 5)}
            ),
            st.fixed_dictionaries({**rank, "kind": st.just("leave"), "reason": st.just("notice")}),
            st.fixed_dictionaries({"t": times, "kind": st.just("end"), "step": st.just(9)}),
        ),
        max_size=60,
    )


@settings(deadline=None)
@given(events=_events(), log=_log(), end=st.floats(min_value=1000, max_value=1500))
def test_purposes_sum_to_the_life_of_each_node_to_the_millisecond(
    events: list[dict[str, Any]], log: list[dict[str, Any]], end: float
) -> None:
    parts = spend(events, log, end=end)
    lives = node_lives(events)
    assert len(parts) == len(lives)
    for part, life in zip(parts, lives, strict=True):
        assert set(part.by_purpose_ms) == set(PURPOSES)
        assert all(spent >= 0 for spent in part.by_purpose_ms.values())
        assert part.total_ms == life.end_ms(round(end * 1000)) - life.requested_ms
        assert sum(part.by_purpose_ms.values()) == part.total_ms
    assert sum(summed(parts).values()) == sum(p.total_ms for p in parts)


def test_a_demo_is_split_as_it_went(story: Any) -> None:
    by_node = {p.node: p.by_purpose_ms for p in spend(story.events, story.log, end=2e9)}

    onprem = by_node["onprem-1"]
    assert onprem["starting"] == 6_000
    # Before 0:38 and after the run's end at 4:06, as far as the node was up.
    assert onprem["outside"] == 24_000 + 66_000
    assert onprem["redone"] > 5_000
    # Workers start once and restart twice; the node never lacks a worker.
    assert onprem["restarting"] > 25_000
    assert onprem["idle"] == 0

    noticed = by_node["spot-a-3f2c"]
    assert noticed["draining"] == 4_000  # its worker left at 2:04, the node at 2:08
    cut = by_node["spot-b-91d0"]
    assert cut["draining"] == 0
    assert by_node["spot-b-77aa"]["starting"] == 45_000


def _node(name: str, start: float, end: float) -> list[dict[str, Any]]:
    about = {"node": name, "pool": "p", "market": "spot", "price_usd_per_hour": None, "why": ""}
    return [
        {"t": start, "kind": "requested", **about},
        {"t": start + 2, "kind": "up", **about},
        {"t": end, "kind": "gone", **about},
    ]


def test_a_node_without_a_worker_during_a_run_is_idle() -> None:
    log = [
        {"t": 105, "kind": "start", "rank": 0, "world": 1, "step": 0, "host": "a"},
        {"t": 107, "kind": "step", "rank": 0, "world": 1, "step": 1, "loss": 1, "duration_s": 1},
        {"t": 110, "kind": "end", "step": 1},
    ]
    a, b = spend(_node("a", 100, 120) + _node("b", 100, 120), log, end=120)
    assert b.by_purpose_ms["idle"] == 5_000
    assert b.by_purpose_ms["outside"] == 3_000 + 10_000
    assert a.by_purpose_ms["training"] == 1_000
    assert a.by_purpose_ms["restarting"] == 1_000
    assert a.by_purpose_ms["waiting"] == 3_000


def test_a_node_that_never_came_up_only_started() -> None:
    (part,) = spend(_node("a", 10, 30)[:1], [], end=25)
    assert part.total_ms == part.by_purpose_ms["starting"] == 15_000
