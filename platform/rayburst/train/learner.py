"""How the language model learns: optimizer, schedule, loss. No Ray, no files, no data.

optimizer, schedule = make_optimizer(model, lr=4e-3, steps=300)
loss = loss_of(model, inputs, targets)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

__all__ = [
    "CLIP_NORM",
    "adamw",
    "learning_rate",
    "loss_of",
    "make_optimizer",
    "nats",
    "schedule_of",
]

CLIP_NORM = 1.0
WARMUP_STEPS = 20
_FINAL_SHARE = 0.1
_EVALUATED_AT_ONCE = 64


def learning_rate(step: int, *, steps: int, peak: float) -> float:
    """Linear warm-up, then a cosine down to a tenth of `peak` at the last step."""
    if step < WARMUP_STEPS:
        return peak * (step + 1) / WARMUP_STEPS
    done = min(1.0, (step - WARMUP_STEPS) / max(1, steps - WARMUP_STEPS))
    return peak * (_FINAL_SHARE + (1 - _FINAL_SHARE) * 0.5 * (1 + math.cos(math.pi * done)))


def make_optimizer(
    model: nn.Module, *, lr: float, steps: int
) -> tuple[torch.optim.AdamW, LambdaLR]:
    """AdamW that decays matrices only, and its schedule over `steps`."""
    optimizer = adamw(list(model.parameters()), lr=lr)
    return optimizer, schedule_of(optimizer, steps=steps)


def adamw(parameters: Sequence[nn.Parameter], *, lr: float) -> torch.optim.AdamW:
    """AdamW that decays matrices only."""
    matrices = [p for p in parameters if p.dim() >= 2]
    vectors = [p for p in parameters if p.dim() < 2]
    return torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        lr=lr,
        betas=(0.9, 0.95),
    )


def schedule_of(optimizer: torch.optim.Optimizer, *, steps: int) -> LambdaLR:
    """Warm-up and cosine over `steps`."""
    return LambdaLR(optimizer, lambda step: learning_rate(step, steps=steps, peak=1.0))


def loss_of(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """The mean loss in nats per target, on the model's device; bfloat16 autocast on a GPU."""
    device = next(model.parameters()).device
    inputs = inputs.to(device, non_blocking=True)
    targets = targets.to(device, non_blocking=True)
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
        loss: Tensor = model(inputs, targets)[1]
    return loss


@torch.no_grad()
def nats(model: nn.Module, inputs: Tensor, targets: Tensor) -> float:
    """Sum of the loss over all targets, without learning."""
    model.eval()
    try:
        total = 0.0
        for start in range(0, inputs.shape[0], _EVALUATED_AT_ONCE):
            part = slice(start, start + _EVALUATED_AT_ONCE)
            total += loss_of(model, inputs[part], targets[part]).item() * targets[part].numel()
        return total
    finally:
        model.train()
