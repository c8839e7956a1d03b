"""Events and run log as intervals."""

from __future__ import annotations

from typing import Any

from rayburst.report.history import eras, merged, node_lives, read_run


def _event(t: float, kind: str, node: str = "onprem-1") -> dict[str, Any]:
    return {"t": t, "kind": kind, "node": node, "pool": "onprem", "market": "on-prem",
            "price_usd_per_hour": 0.02, "why": f"because {kind}"}  # fmt: skip


def _step(t: float, step: int, rank: int = 0, world: int = 1) -> dict[str, Any]:
    return {"t": t, "kind": "step", "rank": rank, "world": world, "step": step, "loss": 1.0,
            "duration_s": 1.0}  # fmt: skip


def _start(t: float, rank: int, world: int, host: str) -> dict[str, Any]:
    return {"t": t, "kind": "start", "rank": rank, "world": world, "step": 0, "host": host}


def test_a_host_that_returns_gets_a_second_life() -> None:
    lives = node_lives(
        [_event(1, "requested"), _event(3, "up"), _event(9, "gone"), _event(20, "requested")]
    )
    assert [(v.requested_ms, v.up_ms, v.gone_ms) for v in lives] == [
        (1000, 3000, 9000),
        (20000, None, None),
    ]
    assert lives[0].why_gone == "because gone"
    assert lives[1].end_ms(25000) == 25000


def test_a_second_gone_changes_nothing() -> None:
    (life,) = node_lives([_event(1, "up"), _event(2, "gone"), _event(3, "gone")])
    assert life.gone_ms == 2000


def test_steps_lost_are_those_computed_again_after_a_start() -> None:
    log = [
        _start(0, 0, 1, "a"),
        _step(2, 1), _step(3, 2), _step(4, 3),
        _start(6, 0, 1, "b"),
        _step(8, 3), _step(9, 4),
    ]  # fmt: skip
    run = read_run(log)
    assert [(s.step, s.host, s.redone) for s in run.steps] == [
        (1, "a", False), (2, "a", False), (3, "a", True), (3, "b", False), (4, "b", False),
    ]  # fmt: skip
    assert run.changeovers == [(0, 1000), (4000, 7000)]


def test_a_worker_that_joins_while_others_step_is_no_changeover() -> None:
    log = [_start(0, 0, 1, "a"), _step(2, 1), _start(2.5, 1, 2, "b"), _step(3, 2), _step(4, 3)]
    assert read_run(log).changeovers == [(0, 1000)]


def test_a_restart_whose_first_step_begins_at_once_or_before_is_a_changeover() -> None:
    """The start is written by the wall clock, a duration is measured by the monotonic one."""
    log = [
        _start(0, 0, 3, "a"),
        _step(1, 1, world=3), _step(2, 2, world=3),
        _start(40, 0, 3, "b"), _start(40.2, 1, 3, "c"),
        {**_step(41, 2, world=3), "duration_s": 1.3}, _step(42, 3, world=3),
    ]  # fmt: skip
    run = read_run(log)
    assert run.changeovers == [(2000, 40000)]
    assert [(e.start_ms, e.end_ms) for e in eras(run)] == [(0, 2000), (40000, 42000)]


def test_a_tenure_ends_when_its_rank_starts_elsewhere_leaves_or_is_no_more() -> None:
    log = [
        *(_start(0, rank, 3, host) for rank, host in enumerate("abc")),
        {"t": 5, "kind": "leave", "rank": 1, "step": 3, "reason": "notice"},
        _start(8, 0, 2, "c"),
        _start(8, 1, 2, "d"),
        {"t": 20, "kind": "end", "step": 9},
    ]
    tenures = {(t.rank, t.host): (t.start_ms, t.end_ms) for t in read_run(log).tenures}
    assert tenures == {
        (0, "a"): (0, 8000),
        (1, "b"): (0, 5000),
        (2, "c"): (0, 8000),
        (0, "c"): (8000, 20000),
        (1, "d"): (8000, 20000),
    }


def test_a_group_that_is_rebuilt_in_place_moves_its_ranks() -> None:
    log = [
        *(_start(0, rank, 2, host) for rank, host in enumerate("ab")),
        *(_step(1, 1, rank, 2) for rank in range(2)),
        {**_start(4, 0, 1, "b"), "kind": "change"},
        _step(5, 2),
    ]
    run = read_run(log)
    assert [(t.rank, t.host, t.start_ms, t.end_ms) for t in run.tenures] == [
        (0, "a", 0, 4000),
        (1, "b", 0, 4000),
        (0, "b", 4000, 5000),
    ]
    assert [s.redone for s in run.steps] == [False] * 3
    assert [s.host for s in run.steps if s.step == 2] == ["b"]
    assert run.changeovers == [(1000, 4000)]


def test_eras_follow_the_world_size(story: Any) -> None:
    assert [era.world for era in eras(read_run(story.log))] == [4, 3, 4]


def test_empty_logs_give_empty_histories() -> None:
    assert node_lives([]) == []
    assert eras(read_run([])) == []
    assert merged([(3, 4), (1, 2), (2, 3), (9, 9)]) == [(1, 4)]
