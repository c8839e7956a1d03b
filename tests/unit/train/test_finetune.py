"""Fine-tuning alone, without Ray: weights in, adapters or all of it, weights out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import TensorDataset

from rayburst.errors import CheckpointError, TrainError
from rayburst.train import finetune
from rayburst.train.finetune import TuneConfig, export, learn
from rayburst.train.gpt import GPT
from rayburst.train.lora import Lora, adapter_state, add_adapters, fold_adapters
from rayburst.train.weights import load_weights, put_tensors, read_tensors, write_weights

torch.set_num_threads(1)
SHAPE = {"block_size": 16, "n_layer": 1, "n_head": 2, "n_embd": 16}


class Net(nn.Module):
    """Not a language model: any module will do."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, width), nn.Linear(width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.down(torch.tanh(self.up(x)))
        return out


def pairs(count: int = 64) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 4, generator=generator)
    return TensorDataset(x, x.sum(1, keepdim=True))


def config(**fields: Any) -> TuneConfig:
    given = {
        "model": f"{__name__}:Net",
        "data": f"{__name__}:pairs",
        "loss": "torch.nn.functional:mse_loss",
        "steps": 30,
        "lr": 1e-2,
    }
    return TuneConfig(**{**given, **fields})


@pytest.fixture(autouse=True)
def _named_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """pytest imports this file under a name that import_module does not find."""
    found = finetune.imported
    here = {f"{__name__}:Net": Net, f"{__name__}:pairs": pairs}
    monkeypatch.setattr(finetune, "imported", lambda name: here.get(name) or found(name))


def loss_of(model: nn.Module) -> float:
    x, y = pairs().tensors
    return nn.functional.mse_loss(model(x), y).item()


def base(tmp_path: Path) -> tuple[Net, str]:
    torch.manual_seed(3)
    net = Net()
    return net, write_weights(str(tmp_path / "base"), net, {})


def test_all_weights_learn_from_the_given_ones_and_come_out_as_safetensors(tmp_path: Path) -> None:
    begin, weights = base(tmp_path)
    tune = config(weights=weights)
    folder = str(tmp_path / "mine")
    learn({**tune.to_dict(), "folder": folder})
    where = export(tune, folder)
    tuned = Net()
    load_weights(tuned, where["weights"])
    assert loss_of(tuned) < 0.5 * loss_of(begin)
    assert json.loads((tmp_path / "mine" / "export" / "config.json").read_text())["model"]
    assert set(load_file(tmp_path / "mine" / "export" / "model.safetensors")) == set(
        begin.state_dict()
    )


def test_lora_learns_beside_frozen_weights_and_folds_into_them(tmp_path: Path) -> None:
    begin, weights = base(tmp_path)
    tune = config(weights=weights, lora_rank=2, lora_targets=("up",))
    folder = str(tmp_path / "mine")
    learn({**tune.to_dict(), "folder": folder})
    where = export(tune, folder)
    tuned = Net()
    load_weights(tuned, where["weights"])
    assert loss_of(tuned) < loss_of(begin)
    assert torch.equal(tuned.down.weight, begin.down.weight)
    assert torch.equal(tuned.up.bias, begin.up.bias)
    adapter = load_file(tmp_path / "mine" / "adapter" / "adapter_model.safetensors")
    a, b = (adapter[f"base_model.model.up.lora_{x}.weight"] for x in "AB")
    about = json.loads((tmp_path / "mine" / "adapter" / "adapter_config.json").read_text())
    assert (about["r"], about["lora_alpha"], about["target_modules"]) == (2, 4, ["up"])
    torch.testing.assert_close(tuned.up.weight, begin.up.weight + 2 * (b @ a))


def test_a_run_that_was_cut_short_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    _, weights = base(tmp_path)
    found = {}
    for name, stops in (("whole", [30]), ("twice", [12, 30])):
        for steps in stops:
            tune = config(weights=weights, lora_rank=2, steps=30)
            folder = str(tmp_path / name)
            _learn_until(tune, folder, steps)
        found[name] = read_tensors(export(tune, folder)["weights"])
    for name, tensor in found["whole"].items():
        assert torch.equal(tensor, found["twice"][name])


def _learn_until(tune: TuneConfig, folder: str, steps: int) -> None:
    """The run, stopped by its own means after `steps`."""
    from rayburst.train.run import Run

    step = Run.step

    def stopping(self: Run) -> bool:
        done = step(self)
        if self.steps_done >= steps:
            self.stop()
        return done

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "step", stopping)
        learn({**tune.to_dict(), "folder": folder})


def test_a_language_model_is_tuned_by_name_with_its_own_loss(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"{i} is {i + 1} less one" for i in range(3000)))
    tune = TuneConfig(
        model="rayburst.train.gpt:GPT.shaped",
        model_args=SHAPE,
        data="rayburst.train.text_windows:text_windows",
        data_args={"data": [str(text)], "block": 16},
        steps=3,
        lora_rank=2,
        lora_targets=("*.heads", "*.proj"),
    )
    learn({**tune.to_dict(), "folder": str(tmp_path / "lm")})
    where = export(tune, str(tmp_path / "lm"))
    model = GPT.shaped(**SHAPE)
    load_weights(model, where["weights"])  # the tied output layer is written once
    assert model.head.weight is model.token_embedding.weight


def test_adapters_begin_as_nothing_and_skip_tied_layers() -> None:
    torch.manual_seed(0)
    model = GPT.shaped(**SHAPE)
    idx = torch.randint(0, 256, (2, 8))
    before, _ = model(idx)
    names = add_adapters(model, Lora(rank=2))
    assert "head" not in names
    assert "blocks.0.attention.heads" in names
    assert torch.equal(model(idx)[0], before)
    learning = {n for n, p in model.named_parameters() if p.requires_grad}
    assert len(learning) == 2 * len(names) == len(adapter_state(model))
    fold_adapters(model)
    assert torch.equal(model(idx)[0], before)
    with pytest.raises(TrainError, match=r"There are: blocks\.0"):
        add_adapters(model, Lora(targets=("nothing",)))


def test_large_weights_are_written_in_numbered_files(tmp_path: Path) -> None:
    from rayburst.checkpoint.store import ObjectStore

    net = Net()
    put_tensors(ObjectStore.open(str(tmp_path)), "model", net.state_dict(), shard_bytes=200)
    assert (tmp_path / "model-00001-of-00002.safetensors").exists()
    other = Net()
    load_weights(other, str(tmp_path))
    assert loss_of(other) == loss_of(net)


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    _, weights = base(tmp_path)
    with pytest.raises(CheckpointError, match=r"other shape \['up"):
        load_weights(Net(width=8), weights)
    with pytest.raises(CheckpointError, match="missing"):
        load_weights(nn.Linear(2, 2), weights)
    with pytest.raises(CheckpointError, match="no safetensors files"):
        read_tensors(str(tmp_path / "empty"))


def test_what_cannot_be_imported_is_named(tmp_path: Path) -> None:
    with pytest.raises(TrainError, match="nowhere"):
        finetune.imported("nowhere.at.all:Net")
    with pytest.raises(ValueError, match=r"package\.module:thing"):
        config(model="Net")
    with pytest.raises(ValueError, match="lr above 0"):
        config(lr=0)
