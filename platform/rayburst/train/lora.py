"""Low-rank adapters (LoRA; Hu et al. 2021, https://arxiv.org/abs/2106.09685) on linear layers.

    names = add_adapters(model, Lora(rank=8, targets=("*.heads", "*.proj")))
    ...                                     # only the adapters learn
    tensors = adapter_state(model)          # under the names that the peft library uses
    fold_adapters(model)                    # the plain model again, adapters added in

A layer y = W x becomes y = W x + (alpha / rank) B A x with A [rank, in] and B [out, rank]; B begins
as zero, so that the model begins as it was.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rayburst.errors import TrainError

__all__ = ["Lora", "adapter_config", "adapter_state", "add_adapters", "fold_adapters"]

_PEFT = "base_model.model."


@dataclass(frozen=True, kw_only=True, slots=True)
class Lora:
    """rank: of each adapter. alpha: its weight, over the rank; 0 is twice the rank.

    targets: patterns of the names of linear layers; `*` stands for any text.
    """

    rank: int = 8
    alpha: float = 0.0
    targets: tuple[str, ...] = ("*",)

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha < 0 or not self.targets:
            raise ValueError(f"{self}: rank is 1 or more, alpha 0 or more, targets at least one")

    @property
    def weight(self) -> float:
        """alpha / rank."""
        return (self.alpha or 2 * self.rank) / self.rank


class _Adapted(nn.Module):
    """A frozen linear layer and its adapter."""

    def __init__(self, base: nn.Linear, lora: Lora) -> None:
        super().__init__()
        self.base = base
        self.weight_of_adapter = lora.weight
        like: dict[str, Any] = {"device": base.weight.device, "dtype": base.weight.dtype}
        self.lora_A = nn.Parameter(torch.empty(lora.rank, base.in_features, **like))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, lora.rank, **like))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.base(x)
        return out + self.weight_of_adapter * F.linear(F.linear(x, self.lora_A), self.lora_B)

    @torch.no_grad()
    def folded(self) -> nn.Linear:
        self.base.weight += self.weight_of_adapter * (self.lora_B @ self.lora_A)
        return self.base


def add_adapters(model: nn.Module, lora: Lora) -> list[str]:
    """Freeze `model` and give an adapter to each linear layer that `lora` names; their names.

    A layer whose weight is another module's too (a tied output layer) gets none. TrainError when no
    layer is named: it lists the model's linear layers.
    """
    linear = {name: module for name, module in model.named_modules() if type(module) is nn.Linear}
    holders = [id(p) for m in model.modules() for p in m.parameters(recurse=False)]
    free = {n: module for n, module in linear.items() if holders.count(id(module.weight)) == 1}
    chosen = [n for n in free if any(fnmatchcase(n, pattern) for pattern in lora.targets)]
    if not chosen:
        raise TrainError(
            f"no linear layer is called {' or '.join(lora.targets)}. There are: {', '.join(free)}"
        )
    model.requires_grad_(requires_grad=False)
    for name in chosen:
        model.set_submodule(name, _Adapted(free[name], lora))
    return chosen


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """The adapters' tensors as peft names them."""
    found: dict[str, Tensor] = {}
    for name, module in _adapted(model).items():
        found[f"{_PEFT}{name}.lora_A.weight"] = module.lora_A.detach()
        found[f"{_PEFT}{name}.lora_B.weight"] = module.lora_B.detach()
    return found


def adapter_config(model: nn.Module, lora: Lora, base: str) -> Mapping[str, Any]:
    """What peft's adapter_config.json says; `base` names the weights below the adapters."""
    return {
        "peft_type": "LORA",
        "r": lora.rank,
        "lora_alpha": lora.weight * lora.rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": list(_adapted(model)),
        "base_model_name_or_path": base,
        "inference_mode": True,
    }


def fold_adapters(model: nn.Module) -> None:
    """Add every adapter to the layer below it, and take it away."""
    for name, module in _adapted(model).items():
        model.set_submodule(name, module.folded())


def _adapted(model: nn.Module) -> dict[str, _Adapted]:
    return {name: m for name, m in model.named_modules() if isinstance(m, _Adapted)}
