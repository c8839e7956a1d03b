"""Saves in the background: back-pressure that says what it did, deadlines, memory."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import rayburst.checkpoint as checkpoint
from rayburst.checkpoint import checkpointer
from rayburst.checkpoint.checkpointer import Checkpointer, FlushReport, Options, SaveHandle
from rayburst.checkpoint.protocol import SaveStep
from rayburst.checkpoint.retention import Best, Retention
from rayburst.errors import CheckpointAbandonedError, CheckpointError, CheckpointExistsError


class Gate:
    """Holds a save at a step until it is opened."""

    def __init__(self, at: SaveStep) -> None:
        self.at, self.here, self.open = at, threading.Event(), threading.Event()

    def __call__(self, step: SaveStep) -> None:
        if step is self.at and not self.open.is_set():
            self.here.set()
            assert self.open.wait(30)


def open_when_waited_for(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """Open the gate at the moment at which somebody begins to wait for the save behind it."""
    plain = checkpointer._wait

    def waiting(handle: SaveHandle, timeout_s: float | None = None) -> bool:
        gate.open.set()
        return plain(handle, timeout_s)

    monkeypatch.setattr(checkpointer, "_wait", waiting)


def state(step: int) -> dict[str, Any]:
    return {"w": torch.arange(3_000_000) * 0.5 + step}


def test_wait_blocks_until_the_last_save_is_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(SaveStep.PACKS_DONE)
    open_when_waited_for(gate, monkeypatch)
    with Checkpointer(str(tmp_path), Options(reached=gate)) as checkpoints:
        first = checkpoints.async_save(state(1), step=1)
        assert first.outcome == "started"
        assert gate.here.wait(30)
        second = checkpoints.async_save(state(2), step=2, when_busy="wait")
        assert second.outcome == "waited"
        assert first.done()
        assert second.result(30).step == 2
        assert checkpoints.latest() == 2


def test_skip_returns_at_once_and_says_so(tmp_path: Path) -> None:
    gate = Gate(SaveStep.LEASED)
    with Checkpointer(str(tmp_path), Options(reached=gate, when_busy="skip")) as checkpoints:
        first = checkpoints.async_save(state(1), step=1)
        assert gate.here.wait(30)
        second = checkpoints.async_save(state(2), step=2)
        assert second.outcome == "skipped"
        assert second.done()
        with pytest.raises(CheckpointAbandonedError, match="step 2 was skipped"):
            second.result()
        gate.open.set()
        assert first.result(30).step == 1
        assert checkpoints.latest() == 1


def test_supersede_calls_the_old_save_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(SaveStep.PARENT_CONFIRMED)
    open_when_waited_for(gate, monkeypatch)
    with Checkpointer(str(tmp_path), Options(reached=gate)) as checkpoints:
        first = checkpoints.async_save(state(1), step=1)
        assert gate.here.wait(30)
        second = checkpoints.async_save(state(2), step=2, when_busy="supersede")
        assert (second.outcome, second.superseded_step) == ("superseded", 1)
        with pytest.raises(CheckpointAbandonedError, match="called off"):
            first.result(30)
        assert second.result(30).step == 2
        assert [listed.step for listed in checkpoints.list()] == [2]
        assert torch.equal(checkpoints.load().state["w"], state(2)["w"])


def test_of_two_writers_of_a_step_one_wins_and_the_other_is_told(tmp_path: Path) -> None:
    gate = Gate(SaveStep.GATHERED)
    slow = Checkpointer(str(tmp_path), Options(reached=gate))
    with slow, Checkpointer(str(tmp_path)) as fast:
        late = slow.async_save(state(7), step=1)
        assert gate.here.wait(30)
        assert fast.save(state(1), step=1).step == 1
        gate.open.set()
        with pytest.raises(CheckpointExistsError, match="step 1 is already saved"):
            late.result(30)
        assert torch.equal(slow.load().state["w"], state(1)["w"])
        assert slow.save(state(8), step=2).step == 2
        assert list(slow.store.list("leases")) == []


def test_collect_keeps_what_the_policy_says_and_says_it_first(tmp_path: Path) -> None:
    with Checkpointer(str(tmp_path)) as checkpoints:
        for step in range(1, 6):
            checkpoints.save(state(step), step=step, metrics={"loss": abs(step - 2.0)})
        policy = Retention(newest=2, best=Best(metric="loss"))
        said = checkpoints.collect(policy, dry_run=True, grace_s=0)
        assert (said.dropped_steps, said.dry_run) == ((1, 3), True)
        assert len(checkpoints.list()) == 5
        done = checkpoints.collect(policy, grace_s=0)
        assert done.dropped_steps == (1, 3)
        assert done.deleted_bytes == said.deleted_bytes > 0
        assert [listed.step for listed in checkpoints.list()] == [2, 4, 5]
        assert done.stored_bytes <= 1.1 * done.referenced_bytes
        assert checkpoints.save(state(6), step=6).step == 6


def test_training_goes_on_without_disturbing_what_was_staged(tmp_path: Path) -> None:
    gate = Gate(SaveStep.PARENT_CONFIRMED)
    with Checkpointer(str(tmp_path), Options(reached=gate)) as checkpoints:
        live = state(1)
        handle = checkpoints.async_save(live, step=1)
        assert gate.here.wait(30)
        live["w"].zero_()
        live["new"] = torch.ones(1)
        gate.open.set()
        handle.result(30)
        assert torch.equal(checkpoints.load().state["w"], state(1)["w"])


def flush_with(
    tmp_path: Path, known_speed: bool, deadline_in_s: float
) -> tuple[FlushReport, list[FlushReport], int | None]:
    now = [0.0]
    gate = Gate(SaveStep.PARENT_CONFIRMED)
    options = Options(reached=gate, monotonic=lambda: now[0])
    heard: list[FlushReport] = []
    with Checkpointer(str(tmp_path), options) as checkpoints:
        if known_speed:
            with checkpoints.bandwidth.transfer(1_000_000):
                now[0] += 1.0
        handle = checkpoints.async_save(state(1), step=1)
        assert gate.here.wait(30)

        def on_estimate(report: FlushReport) -> None:
            heard.append(report)
            if deadline_in_s > 0:
                gate.open.set()

        report = checkpoints.flush(now[0] + deadline_in_s, on_estimate=on_estimate)
        gate.open.set()
        checkpoints.wait()
        assert handle.done()
        return report, heard, checkpoints.latest()


def test_flush_says_beforehand_that_it_fits_and_commits(tmp_path: Path) -> None:
    report, heard, latest = flush_with(tmp_path, True, 30.0)
    assert heard[0].left_bytes == 12_000_000
    assert heard[0].bytes_per_s == pytest.approx(1_000_000)
    assert heard[0].fits is True
    assert (report.committed_step, report.abandoned_step, latest) == (1, None, 1)


def test_flush_says_beforehand_that_it_does_not_fit_and_leaves_nothing(tmp_path: Path) -> None:
    report, heard, latest = flush_with(tmp_path, True, 0.0)
    assert heard[0].fits is False
    assert (report.committed_step, report.abandoned_step, latest) == (None, 1, None)


def test_flush_does_not_guess_a_speed(tmp_path: Path) -> None:
    _, heard, latest = flush_with(tmp_path, False, 30.0)
    assert heard[0].fits is None
    assert heard[0].bytes_per_s is None
    assert latest == 1


def test_flush_with_nothing_to_do_fits(tmp_path: Path) -> None:
    with Checkpointer(str(tmp_path)) as checkpoints:
        assert checkpoints.flush(0.0).fits is True


def test_a_steady_save_sends_what_changed_and_plans_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rayburst.checkpoint import saving

    planned: list[int] = []
    plain: Callable[..., Any] = saving.plan_alike
    monkeypatch.setattr(saving, "plan_alike", lambda *args: (planned.append(1), plain(*args))[1])
    many = {f"p{i}": torch.full((1600,), float(i)) for i in range(1000)}
    with Checkpointer(str(tmp_path)) as checkpoints:
        checkpoints.save(many, step=1)
        for step in (2, 3):
            for i in range(step, 1000, 10):
                many[f"p{i}"] += 0.5
            saved = checkpoints.save(many, step=step)
            assert saved.sent_bytes == 100 * 1600 * 4
        assert planned == [1]
        back = checkpoints.load().state
    assert all(torch.equal(back[name], tensor) for name, tensor in many.items())


def test_words_that_are_no_json_are_refused(tmp_path: Path) -> None:
    with Checkpointer(str(tmp_path)) as checkpoints:
        with pytest.raises(CheckpointError, match="must be JSON"):
            checkpoints.save(state(1), step=1, config={"x": object()})
        with pytest.raises(CheckpointError, match="must be JSON without NaN"):
            checkpoints.save(state(1), step=1, metrics={"loss": float("nan")})
        with pytest.raises(CheckpointError, match="step=-1"):
            checkpoints.save(state(1), step=-1)
        assert checkpoints.latest() is None
        assert list(checkpoints.store.list("leases")) == []


def test_a_state_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    with Checkpointer(str(tmp_path)) as checkpoints:
        checkpoints.save({"a": torch.ones(3), "b": 1}, step=1)
        for wrong, words in (
            ({"a": torch.ones(4)}, "Make the state's tensor the same"),
            ({"a": torch.ones(3, dtype=torch.float64)}, "torch.float32"),
            ({"z": torch.ones(3)}, "1 leaves of the state are not in the checkpoint: z"),
            ({"b": torch.ones(1)}, "a tensor here and no tensor there"),
        ):
            with pytest.raises(CheckpointError, match=words):
                checkpoints.load(wrong)
        part = {"a": torch.zeros(3)}
        checkpoints.load(part)
        assert torch.equal(part["a"], torch.ones(3))


def test_the_five_calls(tmp_path: Path) -> None:
    uri = str(tmp_path)
    checkpoint.save({"a": torch.ones(3)}, uri, step=1)
    assert checkpoint.async_save({"a": torch.zeros(3)}, uri, step=2).result(30).step == 2
    assert checkpoint.latest(uri) == 2
    assert [listed.step for listed in checkpoint.list(uri)] == [1, 2]
    into = {"a": torch.full((3,), 9.0)}
    checkpoint.load(uri, into, step=1)
    assert torch.equal(into["a"], torch.ones(3))
    checkpoint.close_all()


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_dcp_itself_can_use_the_writer_and_the_reader(tmp_path: Path) -> None:
    import torch.distributed.checkpoint as dcp

    from rayburst.checkpoint.progress import Bandwidth, Progress
    from rayburst.checkpoint.reader import CheckpointReader
    from rayburst.checkpoint.store import ObjectStore
    from rayburst.checkpoint.writer import CheckpointWriter, SaveSettings

    store = ObjectStore.open(tmp_path)
    settings = SaveSettings(step=1, save="s", created_ms=0, about={})
    writer = CheckpointWriter(store, settings, Progress(Bandwidth(lambda: 0.0)))
    dcp.save({"m": {"w": torch.arange(10.0)}, "n": 3}, storage_writer=writer, no_dist=True)
    into = {"m": {"w": torch.zeros(10)}, "n": 0}
    dcp.load(into, storage_reader=CheckpointReader(store), no_dist=True)
    assert torch.equal(into["m"]["w"], torch.arange(10.0))
    assert into["n"] == 3
    assert torch.equal(Checkpointer(store).load(unpickle=True).state["m"]["w"], torch.arange(10.0))
