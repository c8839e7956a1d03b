"""Fine-tuning of any `nn.Module` that can be imported: full or LoRA, through the elastic run.

    config = TuneConfig(model="mine.models:Net",
                        weights="s3://models/base", data="mine.data:pairs", steps=500)
    learn({**config.to_dict(), "folder": "s3://bucket/runs/mine"})
    export(config, "s3://bucket/runs/mine")

`rayburst.train.finetune_job` and `jobs/finetune.py` do the same on a cluster.

Names are `package.module:thing`, called with JSON arguments. The data is a map-style dataset of
(inputs, targets), or gives whole batches of them (`rayburst.train.feed.Samples`). Without a loss
the model is called with both and returns (output, loss).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from rayburst.checkpoint.api import load
from rayburst.checkpoint.store import ObjectStore
from rayburst.errors import TrainError
from rayburst.train.learner import learning_rate
from rayburst.train.lora import Lora, adapter_config, adapter_state, add_adapters, fold_adapters
from rayburst.train.run import RunOptions, start_run
from rayburst.train.run_options import Mode
from rayburst.train.weights import load_weights, put_tensors, write_weights

__all__ = ["TuneConfig", "export", "imported", "learn"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TuneConfig:
    """One fine-tuning. `lora_rank` 0 trains all weights; `loss` "" takes the model's own.

    Names are `package.module:thing`; `model_args` and `data_args` are what they are called with.
    `weights`: a folder or file of safetensors; "" begins with what the model is made with.
    `mode`, `micro_batch` and `leave_margin_s` are those of `rayburst.train.run_options.RunOptions`.
    """

    model: str
    data: str
    model_args: Mapping[str, Any] = field(default_factory=dict)
    data_args: Mapping[str, Any] = field(default_factory=dict)
    loss: str = ""
    weights: str = ""
    lora_rank: int = 0
    lora_targets: tuple[str, ...] = ("*",)
    steps: int = 100
    global_batch: int = 16
    lr: float = 1e-4
    seed: int = 0
    micro_batch: int = 0
    mode: Mode = "fast"
    checkpoint_every_s: float | None = None
    leave_margin_s: float = 8.0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.global_batch < 1 or self.lr <= 0 or self.lora_rank < 0:
            raise ValueError(
                f"steps={self.steps}, global_batch={self.global_batch}, lr={self.lr}, lora_rank="
                f"{self.lora_rank}: give steps and batch of 1 or more, lr above 0, rank 0 or more"
            )
        for name in ("model", "data", *(["loss"] if self.loss else [])):
            module, _, thing = getattr(self, name).partition(":")
            if not module or not thing:
                raise ValueError(
                    f"{name}={getattr(self, name)!r}: give package.module:thing, for example "
                    "torch.nn.functional:mse_loss"
                )
        _ = self.run_options  # has checks of its own

    @property
    def run_options(self) -> RunOptions:
        """How its run goes."""
        return RunOptions(
            mode=self.mode,
            micro_batch=self.micro_batch,
            checkpoint_every_s=self.checkpoint_every_s,
            leave_margin_s=self.leave_margin_s,
        )

    @property
    def lora(self) -> Lora | None:
        """The adapters, where there are some."""
        return Lora(rank=self.lora_rank, targets=self.lora_targets) if self.lora_rank else None

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON-ready values."""
        found: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return found

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> TuneConfig:
        """What `to_dict` gave."""
        return cls(**{**fields, "lora_targets": tuple(fields["lora_targets"])})


def imported(name: str) -> Any:
    """The thing that `package.module:thing` names. TrainError when there is none."""
    module, _, path = name.partition(":")
    try:
        found: Any = import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise TrainError(
            f"{name!r} cannot be imported: {error}. Give package.module:thing, and have the "
            "package on the nodes (ray job submit --working-dir .)"
        ) from error
    return found


def learn(fields: Mapping[str, Any]) -> None:
    """The training function; `fields` are a TuneConfig's, and `folder` outside of Ray Train."""
    given = dict(fields)
    folder = given.pop("folder", None)
    config = TuneConfig.from_dict(given)
    run = start_run(config.run_options, storage=folder, config=given)
    torch.manual_seed(config.seed)
    model = _built(config)
    if config.weights:
        load_weights(model, config.weights)
    if config.lora is not None:
        add_adapters(model, config.lora)
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=config.lr)
    schedule = LambdaLR(optimizer, lambda step: learning_rate(step, steps=config.steps, peak=1.0))
    elastic = run.prepare(model, optimizer, schedule, clip_norm=1.0)
    loss_of = _loss(config, elastic, next(model.parameters()).device)
    batches = run.batches(
        imported(config.data)(**config.data_args),
        global_batch=config.global_batch,
        seed=config.seed,
        steps=config.steps,
    )
    for inputs, targets in batches:
        run.backward(loss_of(inputs, targets))
        run.step()


def export(config: TuneConfig, folder: str) -> dict[str, str]:
    """What the newest checkpoint of the run in `folder` learned, as safetensors; where it lies.

    The whole model, adapters folded in, below `export/`; with LoRA also the adapters alone, below
    `adapter/`, in peft's format.
    """
    model = _built(config)
    lora = config.lora
    if lora is not None:
        add_adapters(model, lora)
    loaded = load(f"{folder}/checkpoints").state["model"]
    model.load_state_dict(loaded)
    where: dict[str, str] = {}
    if lora is not None:
        store = ObjectStore.open(f"{folder}/adapter")
        put_tensors(store, "adapter_model", adapter_state(model))
        about = adapter_config(model, lora, config.weights)
        store.put("adapter_config.json", json.dumps(about, indent=1).encode())
        where["adapter"] = store.uri
        fold_adapters(model)
    about = {"model": config.model, "model_args": dict(config.model_args)}
    where["weights"] = write_weights(f"{folder}/export", model, about)
    return where


def _built(config: TuneConfig) -> nn.Module:
    model = imported(config.model)(**config.model_args)
    if not isinstance(model, nn.Module):
        raise TrainError(f"{config.model} made a {type(model).__name__}, not an nn.Module")
    return model


def _loss(
    config: TuneConfig, model: nn.Module, device: torch.device
) -> Callable[[Any, Any], Tensor]:
    given = imported(config.loss) if config.loss else None

    def loss_of(inputs: Any, targets: Any) -> Tensor:
        inputs, targets = inputs.to(device), targets.to(device)
        if given is None:
            own: Tensor = model(inputs, targets)[1]
            return own
        loss: Tensor = given(model(inputs), targets)
        return loss

    return loss_of
