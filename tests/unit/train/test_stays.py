"""What is seen of the pools goes from checkpoint to checkpoint."""

from __future__ import annotations

import json

from rayburst.train.pace import Stay
from rayburst.train.stays import REST_S, Stays

HOSTS = {"a1": "a", "a2": "a", "b1": "b"}


def saved(at_s: float) -> Stays | None:
    first = Stays.begin(None, hosts=HOSTS, now_s=100.0)
    return Stays.from_json(json.loads(json.dumps(first.to_json(at_s))))


def test_time_counts_for_each_worker_and_a_host_that_is_gone_is_an_interruption() -> None:
    after = Stays.begin(saved(160.0), hosts={"a2": "a", "a3": "a"}, now_s=180.0)
    assert after.workers == {"a": 2}
    assert after.seen(190.0) == {
        "a": Stay(watched_s=2 * 60.0 + 2 * 10.0, interruptions=1),
        "b": Stay(watched_s=60.0, interruptions=1),
    }


def test_growth_is_none() -> None:
    after = Stays.begin(saved(160.0), hosts={**HOSTS, "b2": "b"}, now_s=161.0)
    assert {stay.interruptions for stay in after.seen(161.0).values()} == {0}


def test_a_run_that_rested_was_stopped_and_not_interrupted() -> None:
    after = Stays.begin(saved(160.0), hosts={"c1": "c"}, now_s=161.0 + REST_S)
    assert {stay.interruptions for stay in after.seen(1e4).values()} == {0}
    assert after.seen(1e4)["a"].watched_s == 120.0, "what was seen stays known"
    assert Stays.from_json(None) is None
