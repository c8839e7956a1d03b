"""Exact mode over groups that are rebuilt in place: the same bits whatever happened.

.venv/bin/python -m pytest tests/integration/train/test_in_place_exact.py
"""

from __future__ import annotations

from pathlib import Path

import pytest
from in_place_ranks import Event, Table, schedule
from training_ranks import EPOCHS, GLOBAL_BATCH, SAMPLES, Case, Phase, play, weights_of

pytestmark = pytest.mark.timeout(600)
STEPS = -(-SAMPLES * EPOCHS // GLOBAL_BATCH)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The weights of a run on one process without interruption."""
    return weights_of(play(Case(), [Phase(world=1)], tmp_path_factory.mktemp("alone")))


def test_a_cut_a_notice_a_join_and_a_death_within_a_change_leave_no_trace_in_the_weights(
    tmp_path: Path, expected: set[str]
) -> None:
    events = [
        Event("cut", 2, (0,)),
        Event("build", ranks=(0,), generation=3),
        Event("join", 4, (0, 0)),
        Event("notice", 8, (0,)),
    ]
    table = Table(case=Case(), folder=tmp_path, events=list(events))
    log = table.play(world=3)
    assert weights_of(log) == expected
    assert table.told.count("cut") == table.told.count("notice") == table.told.count("join") == 1
    assert table.steering.generation >= 4
    assert len([r for r in log if r["kind"] == "depart"]) == 1


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(12))
def test_random_histories_end_with_the_same_weights(
    tmp_path: Path, expected: set[str], seed: int
) -> None:
    case = Case(optimizer="adamw" if seed % 4 < 2 else "sgd")
    if case != Case():
        expected = weights_of(play(case, [Phase(world=1)], tmp_path / "alone"))
    table = Table(case=case, folder=tmp_path / "shaken", events=schedule(seed, STEPS))
    assert weights_of(table.play(world=2 + seed % 2)) == expected
    assert len(table.told) >= 4
