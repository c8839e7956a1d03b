"""`rayburst checkpoints`: every command on a real folder, and safetensors there and back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from rayburst.checkpoint.checkpointer import Checkpointer
from rayburst.checkpoint.cli import app
from rayburst.checkpoint.exchange import export_safetensors, import_safetensors
from rayburst.checkpoint.store import ObjectStore
from rayburst.errors import CheckpointError, CheckpointNotFoundError


@pytest.fixture
def uri(tmp_path: Path) -> str:
    place = str(tmp_path / "run")
    with Checkpointer(place) as checkpoints:
        for step in range(1, 6):
            state = {"model": {"w": torch.arange(200_000) + step, "b": torch.ones(3)}, "n": step}
            checkpoints.save(state, step=step, metrics={"loss": float(abs(step - 2))})
    return place


def run(*args: str, status: int = 0) -> str:
    done = CliRunner().invoke(app, [*args], env={"COLUMNS": "200", "NO_COLOR": "1"})
    assert done.exit_code == status, (done.output, done.exception)
    return done.output


def test_ls_and_show(uri: str) -> None:
    run("pin", uri, "1")
    listed = run("ls", uri)
    assert "5 checkpoints" in listed.replace("\n", "")
    assert "pinned" in listed
    shown = run("show", uri, "--step", "4")
    assert "parent step 3" in shown
    assert "model.w" in shown
    assert "int64" in shown
    assert "no tensor" in shown


def test_verify_names_the_damaged_object_and_fails(uri: str) -> None:
    assert "whole" in run("verify", uri, "--all")
    store = ObjectStore.open(uri)
    pack = next(i.key for i in store.list("packs") if "000000000005-" in i.key)
    store.put(pack, b"other")
    told = run("verify", uri, status=1)
    assert "damaged" in told
    assert pack in told.replace("\n", "")
    store.put("manifests/000000000004.json", b"{}")
    assert "damaged" in run("ls", uri, status=1)


def test_diff_goes_by_digests(uri: str) -> None:
    told = run("diff", uri, "4", "5")
    assert "model.w" in told
    assert "model.b" not in told
    assert "hold the same state" in run("diff", uri, "5", "5")


def test_gc_says_first_and_does_when_told(uri: str) -> None:
    options = ["gc", uri, "--keep", "1", "--best", "loss", "--grace", "0"]
    told = run(*options)
    assert "would drop step 1" in told
    assert "keep step 2: best loss" in told
    assert "nothing was deleted" in told
    assert "would delete 0 objects" not in told
    assert len(list(ObjectStore.open(uri).list("manifests"))) == 5
    run(*options, "--delete")
    kept = sorted(i.key for i in ObjectStore.open(uri).list("manifests"))
    assert kept == ["manifests/000000000002.json", "manifests/000000000005.json"]
    run("pin", uri, "2")
    run("unpin", uri, "2")


def test_export_and_import(uri: str, tmp_path: Path) -> None:
    run("export", uri, str(tmp_path / "out"), "--prefix", "model.")
    found = import_safetensors(tmp_path / "out")
    assert torch.equal(found["w"], torch.arange(200_000) + 5)
    assert json.loads((tmp_path / "out" / "rayburst.json").read_text())["step"] == 5
    run("import", str(tmp_path / "out"), str(tmp_path / "back"), "--step", "7")
    with Checkpointer(str(tmp_path / "back")) as checkpoints:
        back = checkpoints.load()
    assert back.step == 7
    assert torch.equal(back.state["w"], found["w"])


def test_a_large_export_is_sharded_with_an_index(uri: str, tmp_path: Path) -> None:
    store, folder = ObjectStore.open(uri), tmp_path / "out"
    files = export_safetensors(store, 3, folder, shard_bytes=1_000_000)
    assert [f.name for f in files] == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {f.name for f in files}
    assert index["metadata"]["total_size"] == 1_600_012
    assert set(import_safetensors(folder)) == {"model.w", "model.b"}
    files[0].unlink()
    with pytest.raises(CheckpointError, match="missing; model"):
        import_safetensors(folder)
    with pytest.raises(CheckpointError, match="holds safetensors files already"):
        export_safetensors(store, 3, folder)
    with pytest.raises(CheckpointError, match="no tensor of step 3 starts with"):
        export_safetensors(store, 3, tmp_path / "no", prefix="nothing.")


COMMANDS = {
    "ls": "",
    "show": "--step 3",
    "verify": "--all",
    "diff": "1 2",
    "gc": "--keep 2 --every 10 --best loss --delete",
    "pin": "1",
    "unpin": "1",
    "export": "out --step 3",
}


def refused(command: str, uri: str) -> str:
    words, options = [command, uri], COMMANDS[command].split()
    done = CliRunner().invoke(app, [*words, *options])
    assert done.exit_code == 1
    assert isinstance(done.exception, CheckpointNotFoundError)
    return str(done.exception)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_place_without_checkpoints_gets_the_right_call(command: str, tmp_path: Path) -> None:
    gone, words = tmp_path / "gone", f"rayburst checkpoints {command}"
    told = refused(command, str(gone))
    assert f"no folder {gone}" in told
    assert f"{words} FOLDER {COMMANDS[command]}".strip() in told
    assert not gone.exists()
    (tmp_path / "other").mkdir()
    told = refused(command, str(tmp_path))
    assert "Looked for manifests/<step>.json below it" in told
    assert f"{words} URI {COMMANDS[command]}".strip() in told
    with Checkpointer(str(tmp_path / "run" / "checkpoints")) as checkpoints:
        checkpoints.save({"w": torch.ones(3)}, step=1)
    right = tmp_path / "run" / "checkpoints"
    for wrong in (tmp_path, right / "manifests"):
        assert f"{words} {right} {COMMANDS[command]}".strip() in refused(command, str(wrong))


def test_a_runs_folder_stands_for_its_checkpoints(tmp_path: Path) -> None:
    with Checkpointer(str(tmp_path / "checkpoints")) as checkpoints:
        checkpoints.save({"w": torch.ones(3)}, step=7)
    (tmp_path / "tokens").mkdir()  # what else a run of `train_lm.py` keeps beside them
    (tmp_path / "tokens" / "0").write_bytes(b"x")
    assert "1 checkpoint" in " ".join(run("ls", str(tmp_path)).split())
    assert "step 7" in run("show", str(tmp_path))
    assert "whole" in run("verify", str(tmp_path), "--all")


def test_a_first_save_under_way_is_told_from_nothing(tmp_path: Path) -> None:
    ObjectStore.open(tmp_path).put("packs/save/0-00000", b"x")
    assert "a save that is under way or was killed" in refused("ls", str(tmp_path))
    told = run("gc", str(tmp_path), "--grace", "0", "--delete")
    assert "deleted 1 object," in told


def test_a_step_that_is_not_there_and_a_pin_that_is_not(uri: str) -> None:
    done = CliRunner().invoke(app, ["show", uri, "--step", "9"])
    assert "no checkpoint of step 9. Newest here: 5, 4, 3, 2, 1." in str(done.exception)
    run("pin", uri, "2")
    done = CliRunner().invoke(app, ["unpin", uri, "3"])
    assert "step 3 is not pinned. Pinned are: 2." in str(done.exception)
