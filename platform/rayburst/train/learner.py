"""A model that learns: optimizer, schedule, gradient of the global batch, state. No Ray, no files.

    learner = Learner(model, wrapped, lr=4e-3, steps=300)
    loss = learner.step(inputs, targets, step=7, share=inputs.shape[0] / global_batch)

`wrapped` is what runs the forward pass: the model itself, or DistributedDataParallel around it.
"""

from __future__ import annotations

import contextlib
import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from rayburst.train.gpt import GPT

__all__ = ["Learner", "learning_rate"]

WARMUP_STEPS = 20
_FINAL_SHARE = 0.1
_CLIP_NORM = 1.0


def learning_rate(step: int, *, steps: int, peak: float) -> float:
    """Linear warm-up, then a cosine down to a tenth of `peak` at the last step."""
    if step < WARMUP_STEPS:
        return peak * (step + 1) / WARMUP_STEPS
    done = min(1.0, (step - WARMUP_STEPS) / max(1, steps - WARMUP_STEPS))
    return peak * (_FINAL_SHARE + (1 - _FINAL_SHARE) * 0.5 * (1 + math.cos(math.pi * done)))


class Learner:
    """AdamW on one rank's share of each global batch; bfloat16 autocast on a GPU."""

    def __init__(
        self, model: GPT, wrapped: nn.Module, *, lr: float, steps: int, micro_batch: int = 0
    ) -> None:
        self.model = model
        self._wrapped = wrapped
        self._lr = lr
        self._steps = steps
        self._micro_batch = micro_batch
        self.device = next(model.parameters()).device
        matrices = [p for p in model.parameters() if p.dim() >= 2]
        vectors = [p for p in model.parameters() if p.dim() < 2]
        self._optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
            lr=lr,
            betas=(0.9, 0.95),
            fused=self.device.type == "cuda",
        )

    def step(self, inputs: Tensor, targets: Tensor, *, step: int, share: float) -> float:
        """One step on this rank's samples, which are `share` of the global batch.

        DistributedDataParallel takes the plain mean over ranks; weighting by the share makes that
        the mean over samples, whatever the ranks hold. Returns this rank's mean loss in nats.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(step, steps=self._steps, peak=self._lr)
        self._optimizer.zero_grad(set_to_none=True)
        world = dist.get_world_size() if dist.is_initialized() else 1
        rows = inputs.shape[0]
        size = self._micro_batch or rows
        total = 0.0
        for start in range(0, rows, size):
            part = slice(start, min(start + size, rows))
            weight = (part.stop - part.start) / rows
            with self._sync(is_last=part.stop == rows):
                loss = self._loss(inputs[part], targets[part])
                torch.autograd.backward(loss * (weight * share * world))
            total += weight * loss.item()
        nn.utils.clip_grad_norm_(self.model.parameters(), _CLIP_NORM)
        self._optimizer.step()
        return total

    @torch.no_grad()
    def nats(self, inputs: Tensor, targets: Tensor) -> float:
        """Sum of the loss over all targets, without learning."""
        self.model.eval()
        try:
            size = self._micro_batch or 64
            total = 0.0
            for start in range(0, inputs.shape[0], size):
                part = slice(start, start + size)
                total += self._loss(inputs[part], targets[part]).item() * targets[part].numel()
            return total
        finally:
            self.model.train()

    def state(self) -> dict[str, Any]:
        """Weights, optimizer and random state, to be saved."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "rng": torch.get_rng_state(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take up what `state()` gave."""
        self.model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"])

    def _loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        inputs = inputs.to(self.device, non_blocking=True)
        targets = targets.to(self.device, non_blocking=True)
        is_gpu = self.device.type == "cuda"
        runs = self._wrapped if self.model.training else self.model
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=is_gpu):
            _, loss = runs(inputs, targets)
        result: Tensor = loss
        return result

    def _sync(self, *, is_last: bool) -> contextlib.AbstractContextManager[Any]:
        """Ranks exchange gradients only after the last part of a step."""
        if isinstance(self._wrapped, DistributedDataParallel) and not is_last:
            return self._wrapped.no_sync()
        return contextlib.nullcontext()
