"""Weights and optimizer state under the names of the whole model, whatever the layout.

    state = held_state(stage, optimizer)     # the live tensors: loading fills them in place

torch's own `get_state_dict` names a tied weight twice, or by whichever module a stage holds. Here
it has one name, so that the checkpoint of any layout loads into any other.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from rayburst.train.parallel.stage import Stage

__all__ = ["held_parameters", "held_state", "prepare", "take_groups"]

_OF_THE_MACHINE = ("params", "fused", "foreach", "capturable", "differentiable", "param_names")


def held_parameters(stage: Stage) -> dict[str, torch.nn.Parameter]:
    """What this rank trains, by its name in the whole model."""
    return {stage.plan.canonical(name): p for name, p in stage.model.named_parameters()}


def held_state(stage: Stage, optimizer: Optimizer) -> dict[str, Any]:
    """What this rank holds of the model and the optimizer, for a checkpoint."""
    model: dict[str, Tensor] = {}
    for name, value in stage.model.state_dict().items():
        model.setdefault(stage.plan.canonical(name), value)
    slots = {
        name: dict(optimizer.state[p])
        for name, p in held_parameters(stage).items()
        if p in optimizer.state
    }
    groups = [
        {key: _plain(value) for key, value in group.items() if key not in _OF_THE_MACHINE}
        for group in optimizer.param_groups
    ]
    return {"model": model, "optimizer": {"slots": slots, "groups": groups}}


def take_groups(optimizer: Optimizer, groups: list[dict[str, Any]]) -> None:
    """Put saved settings (learning rate, ...) back into an optimizer with as many groups."""
    for group, saved in zip(optimizer.param_groups, groups, strict=True):
        group.update({k: tuple(v) if isinstance(v, list) else v for k, v in saved.items()})


def prepare(optimizer: Optimizer) -> None:
    """Let an optimizer make its state, all zero, so that a checkpoint can be loaded into it."""
    if optimizer.state:
        return
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0  # moves no weight, decay included
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    for slots in optimizer.state.values():
        for value in slots.values():
            if isinstance(value, Tensor):
                value.zero_()


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
