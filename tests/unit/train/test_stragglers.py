"""Who holds the others up, from a run log written by hand."""

from __future__ import annotations

from typing import Any

from rayburst.train.run_report import run_report
from rayburst.train.stragglers import stragglers


def log(own_s: dict[int, float], *, steps: int = 30, t: float = 0.0) -> list[dict[str, Any]]:
    """A group whose rank r needs `own_s[r]` a step; all are done when the slowest is."""
    world, slowest = len(own_s), max(own_s.values()) + 0.1
    words = {"world": world, "market": "spot", "pool": "p"}
    begun = [
        {"t": t, "kind": "start", "rank": rank, "step": 0, "host": f"host-{rank}", **words}
        for rank in own_s
    ]
    done = [
        {"t": t + slowest * step, "kind": "step", "rank": rank, "step": step, "world": world}
        | {"duration_s": slowest, "own_s": mine, "loss": 1.0}
        for step in range(1, steps + 1)
        for rank, mine in own_s.items()
    ]
    return begun + done


def test_a_slow_worker_is_named_in_the_report() -> None:
    report = run_report(log({0: 0.2, 1: 0.2, 2: 0.7}))
    (slow,) = report.stragglers
    assert (slow.rank, slow.host, slow.own_s, slow.others_s) == (2, "host-2", 0.7, 0.2)
    assert "host-2 (rank 2) holds the others up: it needs 0.70 s a step" in str(report)
    assert report.to_json()["stragglers"] == [slow.to_json()]


def test_of_two_workers_the_slower_one_is_named() -> None:
    assert [s.rank for s in stragglers(log({0: 0.9, 1: 0.2}))] == [0]


def test_nobody_is_named_for_little_alone_or_at_the_start() -> None:
    assert not stragglers(log({0: 0.2, 1: 0.25}))
    assert not stragglers(log({0: 0.001, 1: 0.002})), "the step takes far longer than that"
    assert not stragglers(log({0: 0.9}))
    assert not stragglers(log({0: 0.2, 1: 0.9}, steps=3))
    assert not stragglers([])


def test_only_the_newest_group_counts() -> None:
    assert not stragglers(log({0: 0.2, 1: 0.9}) + log({0: 0.2, 1: 0.2}, t=100.0))


def test_steps_of_an_older_version_say_nothing() -> None:
    records = [{k: v for k, v in r.items() if k != "own_s"} for r in log({0: 0.2, 1: 0.9})]
    assert not stragglers(records)
