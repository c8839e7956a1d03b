"""What was taken away is told from what was given back."""

from __future__ import annotations

from rayburst.fleet.events import NodeEvent
from rayburst.fleet.taken import taken_away


def event(t: float, kind: str, name: str, why: str = "", deadline: float | None = None):
    return NodeEvent(
        t=t,
        kind=kind,
        node=name,
        pool="spot-a",
        market="spot",
        price_usd_per_hour=1.0,
        why=why,
        deadline=deadline,
    )


def test_notices_and_cuts_count_once_and_what_is_given_back_does_not():
    found = taken_away(
        [
            event(60, "gone", "c", "given back: idle"),
            event(50, "gone", "b", "power cut: cable"),
            event(10, "notice", "a", deadline=40),
            event(40, "gone", "a", "taken away"),
            event(70, "notice", "d", deadline=100),
            event(80, "gone", "d", "power cut: rayburst interrupt"),
        ]
    )
    assert [(t.node, t.words, t.t) for t in found] == [
        ("a", "notice 30 s", 10),
        ("b", "power cut", 50),
        ("d", "notice 30 s", 70),
    ]


def test_a_notice_without_time_left_is_told_as_one_at_once():
    found = taken_away(
        [
            event(10, "notice", "a"),
            event(20, "notice", "b", deadline=19),
            event(30, "notice", "c", deadline=34),
        ]
    )
    assert [t.words for t in found] == ["notice at once", "notice at once", "notice 4.0 s"]
