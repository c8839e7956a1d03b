"""Checkpoints of a small random model, as the training job leaves them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from rayburst.checkpoint.checkpointer import Checkpointer
from rayburst.train.gpt import GPT, GPTConfig
from rayburst.train.keeper import FOLDER
from rayburst.train.trained import address

CONFIG = GPTConfig(block_size=32, n_layer=1, n_head=2, n_embd=32)


def save_model(
    run_uri: str,
    *,
    step: int,
    config: dict[str, Any] | None = None,
    shape: GPTConfig = CONFIG,
    change: Callable[[GPT], object] = lambda model: None,
) -> tuple[str, GPT]:
    """Save a model drawn from the seed `step`; returns the checkpoint's address and the model.

    `config` is what the checkpoint says of its shape, where that is not true.
    """
    torch.manual_seed(step)
    model = GPT(shape)
    with torch.no_grad():
        change(model)
    words = {"run": run_uri.rsplit("/", 1)[-1], "user": {"model": config or shape.to_dict()}}
    with Checkpointer(f"{run_uri}/{FOLDER}") as checkpoints:
        checkpoints.save(
            {"model": model.state_dict()},
            step=step,
            data={"step": step, "samples": 0},
            config=words,
            metrics={"val_bits_per_byte": 3.5, "order0_bits_per_byte": 4.8},
        )
    return address(run_uri, step), model.eval().requires_grad_(False)
