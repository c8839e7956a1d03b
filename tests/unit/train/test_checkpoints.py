"""Checkpoints: the newest complete one is found, anything less is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rayburst.checkpoint.store import ObjectStore
from rayburst.errors import CheckpointError, StoreError
from rayburst.train import checkpoints
from rayburst.train.gpt import GPT, GPTConfig

CONFIG = GPTConfig(block_size=8, n_layer=1, n_head=1, n_embd=16)


@pytest.fixture
def run(tmp_path: Path) -> ObjectStore:
    return ObjectStore.open((tmp_path / "runs" / "mine").as_uri())


def write(run: ObjectStore, step: int, seed: int = 0) -> tuple[str, GPT]:
    torch.manual_seed(seed)
    model = GPT(CONFIG)
    name = checkpoints.checkpoint_name(step, 1_700_000_000 + step)
    state = {"model": model.state_dict(), "optimizer": {}, "rng": torch.get_rng_state()}
    checkpoints.save(run, name, state, {"step": step, "config": CONFIG.to_dict(), "run": "mine"})
    return name, model


class Interrupted(ObjectStore):
    """Dies as a killed process would: after `model.pt`, before `meta.json`."""

    fired = 0

    def put(self, key: str, data: bytes | memoryview, **options: Any) -> None:
        if key.endswith("meta.json"):
            type(self).fired += 1
            raise StoreError("killed")
        super().put(key, data, **options)


def test_a_model_comes_back_by_run_and_by_checkpoint(run: ObjectStore) -> None:
    first, old = write(run, 10, seed=1)
    _, new = write(run, 20, seed=2)
    model, meta = checkpoints.load_model(run.uri)
    assert meta["step"] == 20
    assert not model.training
    for name, value in new.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)
    model, meta = checkpoints.load_model(f"{run.uri}/{first}/")
    assert meta["step"] == 10
    assert meta["uri"].endswith(first)
    idx = torch.zeros(1, 4, dtype=torch.long)
    assert torch.equal(model(idx)[0], old.eval()(idx)[0])


def test_a_half_written_checkpoint_is_never_taken(run: ObjectStore) -> None:
    good, _ = write(run, 10)
    dying = Interrupted.open(run.uri)
    Interrupted.fired = 0
    with pytest.raises(StoreError):
        write(dying, 20)
    assert Interrupted.fired == 1
    half = checkpoints.checkpoint_name(20, 1_700_000_020)
    assert run.exists(f"{half}/model.pt")
    assert checkpoints.newest(run) == good
    assert checkpoints.load_model(run.uri)[1]["step"] == 10
    with pytest.raises(CheckpointError, match="half written"):
        checkpoints.load_model(f"{run.uri}/{half}")


def test_a_cut_off_model_is_passed_over_and_named(run: ObjectStore) -> None:
    good, _ = write(run, 10)
    bad, _ = write(run, 20)
    run.put(f"{bad}/model.pt", run.get(f"{bad}/model.pt")[:-100])
    assert checkpoints.newest(run) == good
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoints.load_model(f"{run.uri}/{bad}")


def test_a_flipped_bit_is_noticed(run: ObjectStore) -> None:
    name, _ = write(run, 10)
    body = bytearray(run.get(f"{name}/model.pt"))
    body[len(body) // 2] ^= 1
    run.put(f"{name}/model.pt", bytes(body))
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoints.read(run, name)


def test_damaged_meta_data_is_passed_over(run: ObjectStore) -> None:
    good, _ = write(run, 10)
    bad, _ = write(run, 20)
    for body in (b"{", b"{}", b"[]", b'{"files": {"model.pt": {}}}'):
        run.put(f"{bad}/meta.json", body)
        assert checkpoints.newest(run) == good
        with pytest.raises(CheckpointError, match="damaged"):
            checkpoints.read(run, bad)


def test_nothing_there_says_what_to_give(run: ObjectStore) -> None:
    assert checkpoints.newest(run) is None
    with pytest.raises(CheckpointError, match=r"no complete checkpoint.*s3://bucket/runs/NAME"):
        checkpoints.load_model(run.uri)


def test_another_models_checkpoint_is_refused(run: ObjectStore) -> None:
    name, model = write(run, 10)
    config = {**CONFIG.to_dict(), "n_embd": 32}
    state = {"model": model.state_dict()}
    checkpoints.save(run, name, state, {"step": 10, "config": config})
    with pytest.raises(CheckpointError, match="does not hold a byte-level GPT"):
        checkpoints.load_model(run.uri)


def test_names_sort_by_step() -> None:
    names = [checkpoints.checkpoint_name(s, 1_700_000_000.5) for s in (5, 99, 100, 12_345)]
    assert names == sorted(names)


def listing(*names: str) -> bytes:
    results = [{"checkpoint_dir_name": name, "metrics": {}} for name in names]
    return json.dumps({"ray_version": "2.60.0", "checkpoint_results": results}).encode()


def test_a_usable_snapshot_is_left_alone(run: ObjectStore) -> None:
    assert checkpoints.mend_snapshot(run) is None
    name, _ = write(run, 10)
    run.put(checkpoints.SNAPSHOT, listing(name))
    assert checkpoints.mend_snapshot(run) is None
    assert run.exists(checkpoints.SNAPSHOT)


@pytest.mark.parametrize("body", [listing("checkpoint_00000001_1700000000000"), b'{"checkpoi'])
def test_an_unusable_snapshot_is_moved_aside(run: ObjectStore, body: bytes) -> None:
    name, _ = write(run, 10)
    run.put(checkpoints.SNAPSHOT, body)
    assert checkpoints.mend_snapshot(run) is not None
    assert not run.exists(checkpoints.SNAPSHOT)
    assert run.get(f"{checkpoints.SNAPSHOT}.unusable") == body
    assert checkpoints.newest(run) == name


def test_orphans_are_older_and_unlisted(run: ObjectStore) -> None:
    listed, _ = write(run, 10)
    orphan, _ = write(run, 20)
    kept, _ = write(run, 30)
    later, _ = write(run, 40)
    run.put(checkpoints.SNAPSHOT, listing(listed))
    assert checkpoints.orphans(run, keep=kept) == [orphan]
    checkpoints.delete(run, [orphan])
    assert checkpoints.orphans(run, keep=kept) == []
    assert checkpoints.newest(run) == later
