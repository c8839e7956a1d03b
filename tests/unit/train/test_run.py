"""One process, a local folder: resuming, what is refused, what is told."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from rayburst.checkpoint.catalog import read_manifest, steps
from rayburst.checkpoint.store import ObjectStore
from rayburst.errors import (
    DataError,
    ExactModeError,
    NonFiniteError,
    RunLeftError,
    StoreError,
    TrainError,
)
from rayburst.train.notices import Notice
from rayburst.train.run import Run, RunOptions, start_run
from rayburst.train.runlog import read_folder

EXACT = RunOptions(mode="exact", shards=4, checkpoint_every_s=1e6)
FAST = RunOptions(checkpoint_every_s=1e6)


@pytest.fixture(autouse=True)
def settings_of_torch_come_back() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_deterministic_debug_mode("default")
    torch.set_num_threads(threads)


def data(count: int = 32, seed: int = 1) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    return TensorDataset(torch.randn(count, 8, generator=generator))


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.5), nn.Linear(16, 1))


def train(run: Run, dataset: Any = None, *, steps: int = 12, seed: int = 0, **extras: Any) -> str:
    """Train and return the digest of the weights."""
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=20)
    wrapped = run.prepare(model, optimizer, schedule, **extras)
    for (x,) in run.batches(dataset or data(), global_batch=8, seed=seed, steps=steps):
        run.backward(wrapped(x).pow(2).mean())
        run.step()
    return run._needed()[0].digest()


def log_of(folder: Path) -> list[dict[str, Any]]:
    return read_folder(ObjectStore.open(str(folder)))


@pytest.mark.parametrize("options", [FAST, EXACT])
def test_leaving_in_the_middle_of_an_epoch_changes_nothing(
    options: RunOptions, tmp_path: Path
) -> None:
    whole = train(start_run(options, storage=str(tmp_path / "whole")))
    parts = str(tmp_path / "parts")

    def notice() -> Notice | None:
        return Notice(deadline_s=None, reason="a test") if run.steps_done >= 6 else None

    run = start_run(options, storage=parts, notices=notice)
    with pytest.raises(RunLeftError, match="a test; step 7 was the last with 1"):
        train(run)
    assert train(start_run(options, storage=parts)) == whole
    log = log_of(tmp_path / "parts")
    assert [r["step"] for r in log if r["kind"] == "step"] == list(range(1, 13))
    assert [r["step"] for r in log if r["kind"] == "start"] == [0, 7]
    assert [r["weights"] for r in log if r["kind"] == "end"] == [whole]


def test_a_checkpoint_says_all_about_the_run(tmp_path: Path) -> None:
    options = replace(EXACT, checkpoints_kept=1)
    run = start_run(
        options, storage=str(tmp_path / "mine"), config={"n": 8}, measure=lambda last: {"m": 0.5}
    )
    train(run)
    folder = ObjectStore.open(str(tmp_path / "mine" / "checkpoints"))
    assert [listed.step for listed in steps(folder)] == [12]
    about = read_manifest(folder).about
    assert about["data"]["samples"] == 12 * 8
    assert about["metrics"] == {"m": 0.5}
    config = about["config"]
    assert (config["run"], config["mode"], config["user"]) == ("mine", "exact", {"n": 8})
    assert config["hardware"]["threads"] == 1
    assert run.metrics == {"m": 0.5}
    again = start_run(options, storage=str(tmp_path / "mine"))
    train(again)
    assert again.metrics == {"m": 0.5}
    assert again.steps_done == 12


def test_other_data_or_another_seed_is_refused(tmp_path: Path) -> None:
    train(start_run(FAST, storage=str(tmp_path)))
    with pytest.raises(DataError, match="another number of samples"):
        train(start_run(FAST, storage=str(tmp_path)), data(31))
    with pytest.raises(DataError, match="another seed"):
        train(start_run(FAST, storage=str(tmp_path)), seed=1)


def test_exact_mode_refuses_another_class_of_machine(tmp_path: Path) -> None:
    train(start_run(EXACT, storage=str(tmp_path)))
    with pytest.raises(ExactModeError, match="threads: 1 there, 2 here"):
        train(start_run(replace(EXACT, threads=2), storage=str(tmp_path)), steps=14)
    with pytest.raises(ExactModeError, match="shards=4, this run has 8"):
        train(start_run(replace(EXACT, shards=8), storage=str(tmp_path)), steps=14)
    train(start_run(FAST, storage=str(tmp_path)), steps=14)


def test_exact_mode_refuses_buffers_that_a_forward_pass_changes(tmp_path: Path) -> None:
    run = start_run(EXACT, storage=str(tmp_path))
    model = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4))
    wrapped = run.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(ExactModeError, match=r"1\.num_batches_tracked.*GroupNorm"):
        for (x,) in run.batches(data(), global_batch=8, steps=2):
            run.backward(wrapped(x).mean())


def test_a_loop_that_is_wrong_says_so(tmp_path: Path) -> None:
    run = start_run(FAST, storage=str(tmp_path))
    with pytest.raises(TrainError, match=r"run\.prepare\(model, optimizer\) first"):
        next(run.batches(data(), global_batch=8, steps=2))
    model = net()
    wrapped = run.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(ValueError, match="give the end of the run"):
        next(run.batches(data(), global_batch=8))
    with pytest.raises(TrainError, match="belongs once into each turn"):
        run.backward(torch.zeros(1))
    turns = run.batches(data(), global_batch=8, steps=3)
    (x,) = next(turns)
    with pytest.raises(TrainError, match=r"run\.step\(\) without run\.backward"):
        run.step()
    with pytest.raises(TrainError, match=r"ended without run\.step\(\)"):
        next(turns)
    assert wrapped(x).shape == (8, 1)
    with pytest.raises(TrainError, match="outside Ray Train give one"):
        start_run(FAST)


class Counter:
    """An extra of the user's."""

    count = 0

    def state_dict(self) -> dict[str, int]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.count = state["count"]


def test_extras_and_schedules_come_back(tmp_path: Path) -> None:
    counter = Counter()
    counter.count = 5
    train(start_run(FAST, storage=str(tmp_path)), counter=counter)
    other = Counter()
    run = start_run(FAST, storage=str(tmp_path))
    train(run, counter=other, steps=13)
    assert other.count == 5
    prepared, _ = run._needed()
    assert prepared.state()["extras"]["scheduler0"]["last_epoch"] == 13


def test_stop_ends_with_a_checkpoint(tmp_path: Path) -> None:
    run = start_run(FAST, storage=str(tmp_path))
    model = net()
    wrapped = run.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
    for (x,) in run.batches(data(), global_batch=8, epochs=9):
        run.backward(wrapped(x).mean())
        run.step()
        if run.steps_done == 4:
            run.stop()
    assert [listed.step for listed in steps(ObjectStore.open(str(tmp_path / "checkpoints")))] == [4]


def test_a_loss_that_stays_infinite_ends_even_a_patient_run(tmp_path: Path) -> None:
    run = start_run(replace(FAST, on_nonfinite="skip"), storage=str(tmp_path))
    model = net()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    wrapped = run.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(NonFiniteError, match="and so had the 10 steps before it"):
        for (x,) in run.batches(data(), global_batch=8, steps=50):
            run.backward(wrapped(x).mean() * float("inf"))
            run.step()
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert len([r for r in log_of(tmp_path) if r["kind"] == "nonfinite"]) >= 10


def test_a_store_that_is_gone_does_not_stop_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused: list[str] = []
    run: Run | None = None
    real = ObjectStore.put

    def put(self: ObjectStore, key: str, *args: Any, **options: Any) -> Any:
        is_checkpoint = "/log" not in f"/{key}"
        # its first save fails, however late the thread that saves comes to it
        if run is None or run.steps_done < 8 or (is_checkpoint and not refused):
            refused.extend([key] if is_checkpoint else [])
            raise StoreError("gone")
        return real(self, key, *args, **options)

    monkeypatch.setattr(ObjectStore, "put", put)
    run = start_run(replace(FAST, checkpoint_every_s=1e-9), storage=str(tmp_path))
    train(run)
    assert refused, "the store was away"
    log = log_of(tmp_path)
    assert [r["step"] for r in log if r["kind"] == "step"] == list(range(1, 13)), "no line is lost"
    assert [r for r in log if r["kind"] == "unsaved"]
    assert [r["step"] for r in log if r["kind"] == "committed"][-1] == 12


def test_a_damaged_checkpoint_is_passed_over_and_told(tmp_path: Path) -> None:
    options = replace(FAST, checkpoint_every_s=1e-9)
    whole = train(start_run(options, storage=str(tmp_path)))
    root = tmp_path / "checkpoints"
    newest = max(root.glob("manifests/*.json"))
    newest.write_bytes(newest.read_bytes()[:-30])
    again = train(start_run(options, storage=str(tmp_path)))
    assert again == whole
    assert [r for r in log_of(tmp_path) if r["kind"] == "damaged"]
    assert (root / "damaged" / newest.name).exists(), "it is kept for whoever wants to look"
