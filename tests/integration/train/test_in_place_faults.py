"""Faults in groups that are rebuilt in place: real processes and process groups, without Ray.

.venv/bin/python -m pytest tests/integration/train/test_in_place_faults.py
"""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from in_place_ranks import Event, Table, schedule
from training_ranks import EPOCHS, GLOBAL_BATCH, SAMPLES, Case, Phase, play, weights_of

from rayburst.checkpoint.checkpointer import Checkpointer
from rayburst.fleet import processes
from rayburst.train.run_report import run_report

pytestmark = pytest.mark.timeout(600)
STEPS = -(-SAMPLES * EPOCHS // GLOBAL_BATCH)
FAST = {"mode": "fast"}


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The weights of a run on one process without interruption."""
    return weights_of(play(Case(), [Phase(world=1)], tmp_path_factory.mktemp("alone")))


def test_two_losses_at_once_and_a_joiner_that_dies_while_it_joins(
    tmp_path: Path, expected: set[str]
) -> None:
    events = [
        Event("cut", 2, (0, 2)),
        Event("join", 4, (0,)),
        Event("build", ranks=(2,), generation=3),
    ]
    table = Table(case=Case(), folder=tmp_path, events=events)
    log = table.play(world=4)
    assert weights_of(log) == expected
    assert table.told == ["cut", "join"]
    assert set(table.lost) == {"m0", "m2", "m4"}, "m4 is the joiner"
    assert table.members == ["m1", "m3"]
    assert table.steering.generation == 4


@pytest.mark.parametrize("rank", [0, 2])
def test_a_death_while_the_others_connect_to_it_holds_nobody(
    tmp_path: Path, expected: set[str], rank: int
) -> None:
    """Rank 0, whose store all ask, or another one."""
    events = [Event("cut", 2, (1,)), Event("connect", ranks=(rank,), generation=2)]
    table = Table(case=Case(), folder=tmp_path, events=events)
    log = table.play(world=4)
    assert weights_of(log) == expected
    assert table.told == ["cut"]
    assert len(table.lost) == 2
    assert table.steering.generation == 3


def test_a_worker_that_hangs_is_ended_and_the_others_go_on(
    tmp_path: Path, expected: set[str]
) -> None:
    events = [Event("stop", 3, (1,))]
    table = Table(case=Case(), folder=tmp_path, events=events, hung_after_s=3)
    log = table.play(world=3)
    assert weights_of(log) == expected
    assert table.told == ["stop"]
    assert set(table.lost) == {"m1"}
    assert "hung for 3 s" in table.lost["m1"]


def test_a_dead_link_is_told_from_a_dead_process_and_holds_nobody(
    tmp_path: Path, expected: set[str]
) -> None:
    """No connection ends: the others would wait in their collective for as long as torch may."""
    events = [Event("unplug", 3, (1,)), Event("cut", 8, (1,))]
    table = Table(case=Case(), folder=tmp_path, events=events)
    log = table.play(world=3)
    assert weights_of(log) == expected
    assert table.told == ["unplug", "cut"]
    assert list(table.lost) == ["m1", "m2"]
    assert table.lost["m1"].endswith("was lost: its port does not answer")
    assert table.lost["m2"].endswith("was lost: its process ended")


def test_a_straggler_is_named_and_keeps_its_place(tmp_path: Path) -> None:
    table = Table(case=Case(options=FAST), folder=tmp_path, events=[], slow_s={"m1": 0.3})
    log = table.play(world=3)
    (slow,) = run_report(log).stragglers
    assert slow.host == "m1"
    assert slow.own_s > 0.3 > slow.others_s
    assert "m1" in str(run_report(log))
    assert table.members == ["m0", "m1", "m2"]
    assert not table.lost


def test_a_loss_that_is_no_number_is_left_out_and_told_whatever_happens_to_the_group(
    tmp_path: Path,
) -> None:
    case = Case(options={"mode": "exact", "on_nonfinite": "skip"}, poison=20)
    alone = weights_of(play(case, [Phase(world=1)], tmp_path / "alone"))
    table = Table(case=case, folder=tmp_path, events=[Event("cut", 5, (0,)), Event("join", 8)])
    log = table.play(world=2)
    assert table.told == ["cut", "join"]
    assert weights_of(log) == alone
    assert len({r["step"] for r in log if r["kind"] == "nonfinite"}) == EPOCHS


@pytest.mark.parametrize("gone_s", [3.0, pytest.param(60.0, marks=pytest.mark.soak)])
def test_training_goes_on_without_the_store_and_checkpoints_catch_up(
    tmp_path: Path, s3_server: Any, monkeypatch: pytest.MonkeyPatch, gone_s: float
) -> None:
    """A member is lost meanwhile: the others need nothing of the store to go on."""
    for name, value in s3_server.env.items():
        monkeypatch.setenv(name, value)
    outage = Outage(s3_server.folder, after_step=3, gone_s=gone_s)
    uri = f"{s3_server.uri}/in-place-{int(gone_s)}"
    epochs = 40 * EPOCHS if gone_s > 10 else 2 * EPOCHS
    case = Case(epochs=epochs)
    table = Table(
        case=case,
        folder=tmp_path,
        uri=uri,
        env=s3_server.env,
        events=[Event("cut", 8, (0,))],
        watch=outage.look,
    )
    with outage.over():
        log = table.play(world=3)
    alone = weights_of(play(case, [Phase(world=1)], tmp_path / "alone"))
    assert weights_of(log) == alone
    assert table.told == ["cut"]
    assert outage.steps_meanwhile >= 5, "training went on"
    committed = [r for r in log if r["kind"] == "committed"]
    assert not [r for r in committed if outage.began_s + 1 < r["t"] < outage.ended_s]
    assert [r for r in committed if r["t"] > outage.ended_s], "checkpoints catch up"
    steps = {r["step"] for r in log if r["kind"] == "step"}
    assert steps == set(range(1, -(-SAMPLES * epochs // GLOBAL_BATCH) + 1)), "no line is lost"


class Outage:
    """The S3 server of `folder` answers nobody for `gone_s`, once `after_step` is done, and until
    five more steps are.
    """

    def __init__(self, folder: Path, *, after_step: int, gone_s: float) -> None:
        self._folder, self._after_step, self._gone_s = folder, after_step, gone_s
        self._step_then = 0
        self.began_s = self.ended_s = 0.0
        self.steps_meanwhile = 0

    def look(self, table: Table) -> None:
        done = table.steps_done()
        if not self.began_s and done >= self._after_step:
            self._signal(signal.SIGSTOP)
            self.began_s, self._step_then = time.time(), done
        elif self.began_s and not self.ended_s:
            self.steps_meanwhile = done - self._step_then
            if time.time() - self.began_s >= self._gone_s and self.steps_meanwhile >= 5:
                self.ended_s = time.time()
                self._signal(signal.SIGCONT)

    @contextmanager
    def over(self) -> Iterator[None]:
        """Whatever happens, the server answers afterwards."""
        try:
            yield
        finally:
            self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        for process in processes.owned(self._folder):
            process.send_signal(number)


@pytest.mark.parametrize("seed", [1, *(pytest.param(s, marks=pytest.mark.soak) for s in range(12))])
def test_fast_mode_trains_on_each_sample_once_an_epoch_whatever_happens(
    tmp_path: Path, seed: int
) -> None:
    events = schedule(seed, STEPS)
    table = Table(case=Case(options=FAST), folder=tmp_path, events=events)
    log = table.play(world=2 + seed % 2)
    assert len(weights_of(log)) == 1, "all ranks end with the same weights"
    steps = table.samples_by_step()
    assert sorted(steps) == list(range(1, STEPS + 1))
    counts = Counter(sample for samples in steps.values() for sample in samples)
    assert counts == dict.fromkeys(range(SAMPLES), EPOCHS)
    assert len(table.told) >= 4


def test_a_spread_model_loses_no_step_with_notice_and_few_without(tmp_path: Path) -> None:
    """No rank has the state whole: a lost piece comes from the newest checkpoint."""
    case = Case(options=FAST, optimizer="sgd", dropout=0.0, spread=True, epochs=2 * EPOCHS)
    events = [Event("notice", 3, (0,)), Event("cut", 7, (1,)), Event("join", 10, (0,))]
    table = Table(case=case, folder=tmp_path, events=events)
    log = table.play(world=3)
    assert table.told == ["notice", "cut", "join"]
    assert table.steering.generation == 4
    assert len(weights_of(log)) == 1
    counts = Counter(s for samples in table.samples_by_step().values() for s in samples)
    assert counts == dict.fromkeys(range(SAMPLES), case.epochs)

    noticed, cut, joined = (
        next(r for r in log if r["kind"] == "change" and r["generation"] == g) for g in (2, 3, 4)
    )
    for change in (noticed, joined):
        finished = [r["step"] for r in log if r["kind"] == "step" and r["t"] < change["t"]]
        assert change["step"] == max(finished), "with notice no step is done again"
    saved = [r["step"] for r in log if r["kind"] == "committed" and r["t"] < cut["t"]]
    assert cut["step"] >= max(saved) >= noticed["step"]

    play(replace(case, spread=False), [Phase(world=1)], tmp_path / "alone")
    mine, alone = (final(folder) for folder in (tmp_path, tmp_path / "alone"))
    for name, value in alone["model"].items():
        torch.testing.assert_close(mine["model"][name], value, rtol=1e-4, atol=1e-5)


def final(folder: Path) -> dict[str, Any]:
    with Checkpointer(str(folder / "run" / "checkpoints")) as checkpoints:
        return checkpoints.load().state
