"""The one model of the serving benchmark: a tiny transformer of eight layers over 64 numbers."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor, nn

INPUTS, TOKENS, WIDTH, LAYERS, OUTPUTS = 64, 8, 64, 8, 8


class Tiny(nn.Module):
    """Eight tokens of eight numbers; eight encoder layers 64 wide; eight outputs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.into = nn.Linear(INPUTS // TOKENS, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 128, dropout=0.0, batch_first=True)
        self.body = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
        self.out = nn.Linear(WIDTH, OUTPUTS)

    def forward(self, rows: Tensor) -> Tensor:
        """[B, 64] to [B, 8]."""
        tokens = self.into(rows.view(len(rows), TOKENS, -1))
        made: Tensor = self.out(self.body(tokens).mean(1))
        return made


def load() -> Tiny:
    """The model on one thread, as every server runs it."""
    torch.set_num_threads(1)
    return Tiny().eval().requires_grad_(False)


@torch.inference_mode()
def run(model: Tiny, rows: Any) -> Tensor:
    """Answers to a batch of rows: a tensor, an array or lists of 64 numbers."""
    return model(torch.as_tensor(rows, dtype=torch.float32))


def alone(batch: int, seconds: float) -> float:
    """Requests a second of the model by itself at one batch size."""
    model, rows = load(), torch.rand(batch, INPUTS)
    run(model, rows)
    done, started_s = 0, time.perf_counter()
    while time.perf_counter() - started_s < seconds:
        run(model, rows)
        done += batch
    return done / (time.perf_counter() - started_s)
