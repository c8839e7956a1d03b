"""Every worker-second is accounted for, and the purposes sum to the total."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayburst.train.goodput import PURPOSES, goodput
from rayburst.train.resizing import GrowthOptions, growth
from rayburst.train.run_report import run_report


def record(t: float, kind: str, rank: int, world: int, **fields: Any) -> dict[str, Any]:
    return {"t": t, "kind": kind, "rank": rank, "world": world, **fields}


def start(t: float, rank: int, world: int, step: int = 0) -> dict[str, Any]:
    return record(t, "start", rank, world, step=step, host=f"h{rank}", market="spot", pool="p")


def step(t: float, rank: int, world: int, number: int, **fields: Any) -> dict[str, Any]:
    return record(t, "step", rank, world, step=number, loss=1.0, duration_s=1.0, **fields)


def test_a_calm_run_is_all_training_but_for_its_checkpoint_and_its_data() -> None:
    log = [start(0, 0, 1), step(1, 0, 1, 1, wait_s=0.25), step(2, 0, 1, 2)]
    log += [record(2.5, "checkpoint", 0, 1, step=2, blocked_s=0.5), step(3.5, 0, 1, 3)]
    log += [record(4.0, "end", 0, 1, step=3)]
    spent = goodput(log)
    assert spent.total_s == 4.0
    assert spent.seconds == {
        "lost": 0.0, "data": 0.25, "training": 2.75, "checkpoint": 0.5, "restarting": 0.0,
        "idle": 0.5,
    }  # fmt: skip
    assert spent.share == 2.75 / 4
    assert (spent.steps, spent.steps_redone, spent.workers) == (3, 0, 1)


def test_a_cut_costs_the_steps_done_again_and_the_restart_of_those_left() -> None:
    log = [start(0, r, 2) for r in (0, 1)]
    log += [step(t, r, 2, t) for t in (1, 2, 3) for r in (0, 1)]
    # rank 1's machine is gone at 3; rank 0 is back at 8 from the checkpoint of step 1
    log += [start(8, 0, 1, step=1), step(9, 0, 1, 2), step(10, 0, 1, 3), step(11, 0, 1, 4)]
    log += [record(11, "end", 0, 1, step=4)]
    spent = goodput(log)
    assert spent.steps_redone == 2
    assert spent.seconds["lost"] == 4.0, "two workers, two steps each"
    assert spent.seconds["training"] == 2.0 + 3.0
    assert spent.seconds["restarting"] == pytest.approx(5.0 * 2 - 5.0, abs=5.0)
    assert sum(spent.seconds.values()) == pytest.approx(spent.total_s)


def test_a_group_that_changes_in_place_counts_each_worker_once_at_whatever_rank() -> None:
    log = [start(0, r, 2) for r in (0, 1)] + [step(t, r, 2, t) for t in (1, 2) for r in (0, 1)]
    # rank 0 departs, rank 1 goes on in its place 2 s later; its old number is told too late
    log += [{**start(4, 0, 1, step=2), "kind": "change", "host": "h1"}]
    log += [record(4.5, "depart", 0, 2, step=2, reason="a notice"), step(5, 0, 1, 3)]
    # h2 joins as rank 1 after a stop of 1 s
    log += [{**start(6, 0, 2, step=3), "kind": "change", "host": "h1"}]
    log += [{**start(6, 1, 2, step=3), "host": "h2"}]
    log += [step(7, r, 2, 4) for r in (0, 1)] + [record(7, "end", 0, 2, step=4)]
    spent = goodput(log)
    assert spent.total_s == 4 + 7 + 2, "rank 0 until it departs, h1 all along, h2 with its join"
    assert spent.seconds["training"] == 2 * 2 + 1 + 2
    assert spent.seconds["restarting"] == 2 + 2 + 1 + 1
    assert spent.steps_redone == 0
    assert run_report(log).world_sizes == [2, 1, 2]


def test_the_time_in_which_a_worker_gets_ready_is_its_own() -> None:
    log = [{**start(3, 0, 1), "began": 1.0}, step(4, 0, 1, 1), step(9, 0, 1, 6)]
    # a joiner gets ready while the other trains; the change itself takes a second
    log += [{**start(10, 0, 2, step=6), "kind": "change"}]
    log += [{**start(10, 1, 2, step=6), "began": 5.0}]
    log += [step(11, r, 2, 7) for r in (0, 1)] + [record(11, "end", 0, 2, step=7)]
    spent = goodput(log)
    assert spent.total_s == 10 + 6
    assert spent.seconds["restarting"] == 2 + 1 + 5
    assert spent.seconds["training"] == 1 + 1 + 2


def test_a_log_without_a_start_accounts_for_nothing() -> None:
    assert goodput([]).total_s == 0
    assert goodput([]).share is None
    assert set(goodput([]).to_json()["seconds"]) == set(PURPOSES)


@given(st.data())
def test_whatever_the_log_holds_the_purposes_sum_to_the_total(data: st.DataObject) -> None:
    times = st.floats(0, 1000, allow_nan=False)
    log = [start(data.draw(times), 0, 1)]
    for _ in range(data.draw(st.integers(0, 20))):
        kind = data.draw(
            st.sampled_from(["start", "change", "depart", "step", "checkpoint", "leave", "end"])
        )
        world = data.draw(st.integers(1, 3))
        rank = data.draw(st.integers(0, world - 1))
        t, number = data.draw(times), data.draw(st.integers(0, 5))
        fields = {"step": number, "host": "h", "loss": 1.0, "blocked_s": data.draw(times)}
        fields |= {"duration_s": data.draw(times), "wait_s": data.draw(times)}
        log.append(record(t, kind, rank, world, **fields))
    spent = goodput(log)
    assert all(seconds >= 0 for seconds in spent.seconds.values())
    assert sum(spent.seconds.values()) == pytest.approx(spent.total_s)
    assert str(spent).count("\n") == len(PURPOSES)


def test_the_report_tells_waiting_for_data_and_decisions_on_growth_with_their_numbers() -> None:
    log = [start(0, 0, 1), step(1, 0, 1, 1, wait_s=0.01), step(2, 0, 1, 2)]
    found = growth(1, 2, b'{"eta_s": 100, "world": 1, "between_s": 4000}', GrowthOptions())
    log += [record(2.5, "growth", -1, 0, **found.to_json()), record(3, "end", 0, 1, step=2)]
    report = run_report(log)
    assert report.data_wait_share == pytest.approx(0.005)
    assert report.to_json()["growths"] == [found.to_json()]
    assert "steps waited for data for 0.50% of their time" in str(report)
    assert "growth from 1 to 2 workers saves 35 s: 100 s are left" in str(report)
    assert run_report([]).data_wait_share is None


def test_where_no_worker_stays_others_are_started_whatever_is_left() -> None:
    """All nodes are cut or under notice, and new ones are there already."""
    found = growth(0, 2, b'{"eta_s": 1.0, "world": 2}', GrowthOptions(), in_place_s=2.0)
    assert found.pays
    assert found.gain_s is None
    assert "no other worker stays" in str(found)
