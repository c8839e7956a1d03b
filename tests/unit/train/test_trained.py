"""A trained model comes back by the address of its run, or of a step; anything less is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from trained_runs import CONFIG, save_model

from rayburst.checkpoint.store import ObjectStore
from rayburst.errors import CheckpointDamagedError, CheckpointError, CheckpointNotFoundError
from rayburst.train.ray_list import LIST, mend_list
from rayburst.train.trained import load_model, newest_address


@pytest.fixture
def run(tmp_path: Path) -> str:
    return f"file://{tmp_path}/runs/mine"


def test_a_model_comes_back_by_run_and_by_step(run: str) -> None:
    _, old = save_model(run, step=10)
    newer, new = save_model(run, step=20)
    model, meta = load_model(run)
    assert (meta["step"], meta["run"], meta["uri"]) == (20, "mine", newer)
    assert meta["val_bits_per_byte"] == 3.5
    assert not model.training
    for name, value in new.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)
    model, meta = load_model(f"{run}@10")
    assert meta["step"] == 10
    idx = torch.zeros(1, 4, dtype=torch.long)
    assert torch.equal(model(idx)[0], old.eval()(idx)[0])
    assert load_model(f"{run}/checkpoints")[1]["uri"] == newer


def test_a_flipped_bit_is_noticed_and_the_one_before_is_taken(run: str, tmp_path: Path) -> None:
    save_model(run, step=10)
    save_model(run, step=20)
    packs = tmp_path / "runs" / "mine" / "checkpoints" / "packs"
    newest = max(packs.glob("000000000020-*"))
    for pack in newest.iterdir():
        body = bytearray(pack.read_bytes())
        body[len(body) // 2] ^= 1
        pack.write_bytes(bytes(body))
    with pytest.raises(CheckpointDamagedError):
        load_model(f"{run}@20")
    assert load_model(run)[1]["step"] == 10


def test_nothing_there_says_what_to_give(run: str) -> None:
    with pytest.raises(CheckpointError, match=r"no whole checkpoint.*s3://bucket/runs/NAME@300"):
        load_model(run)
    save_model(run, step=10)
    with pytest.raises(
        CheckpointNotFoundError, match=r"no checkpoint of step 11\. Newest here: 10"
    ):
        load_model(f"{run}@11")


def test_another_models_checkpoint_is_refused(run: str) -> None:
    save_model(run, step=10, config={**CONFIG.to_dict(), "n_embd": 64})
    with pytest.raises(CheckpointError, match="does not hold a byte-level GPT"):
        load_model(run)


def test_the_run_that_saved_last_is_the_newest(tmp_path: Path) -> None:
    runs = ObjectStore.open(f"file://{tmp_path}/runs")
    assert newest_address(runs) is None
    save_model(f"{runs.uri}/old", step=900)
    whole, _ = save_model(f"{runs.uri}/new", step=100)
    assert newest_address(runs) == whole


def listing(*names: str) -> bytes:
    results = [{"checkpoint_dir_name": name, "metrics": {}} for name in names]
    return json.dumps({"ray_version": "2.60.0", "checkpoint_results": results}).encode()


def test_a_usable_list_of_rays_is_left_alone(tmp_path: Path) -> None:
    run = ObjectStore.open(str(tmp_path))
    assert mend_list(run) is None
    run.put("rayburst-000000000010/rayburst.json", b"{}")
    run.put(LIST, listing("rayburst-000000000010"))
    assert mend_list(run) is None
    assert run.exists(LIST)


@pytest.mark.parametrize("body", [listing("rayburst-000000000010"), b'{"checkpoi'])
def test_an_unusable_list_of_rays_is_moved_aside(body: bytes, tmp_path: Path) -> None:
    run = ObjectStore.open(str(tmp_path))
    run.put(LIST, body)
    assert mend_list(run) is not None
    assert not run.exists(LIST)
    assert run.get(f"{LIST}.unusable") == body
