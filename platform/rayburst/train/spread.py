"""A model that is spread over the ranks, cut anew for each group of a run.

    spread = Spread(model, optimizer, shard)     # while the model is whole
    model = spread.cut()                         # for the group that is there now

`shard(model)` calls torch's `fully_shard` on a whole model and its parts. The pieces are cut for
one number of ranks, and the processes of a run outlive their group: so a copy of the model without
its weights is kept, and cut again for the next group. Then the weights, and what the optimizer
knows of them, must come from a checkpoint: `has_weights` is False until `loaded` is called.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rayburst.errors import TrainError

__all__ = ["Shard", "Spread"]

Shard = Callable[[nn.Module], object]


class Spread:
    """See the module. The optimizer keeps its settings and is given the new parameters."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, shard: Shard) -> None:
        names = {id(p): name for name, p in model.named_parameters()}
        unknown = sum(id(p) not in names for g in optimizer.param_groups for p in g["params"])
        if unknown:
            raise TrainError(
                f"the optimizer has {unknown} parameters that are not the model's: make it of "
                "model.parameters() before run.prepare(model, optimizer, shard=...)"
            )
        self._names = [[names[id(p)] for p in g["params"]] for g in optimizer.param_groups]
        self._optimizer, self._shard = optimizer, shard
        self._whole: nn.Module | None = model
        self._bare = _without_weights(model)
        self._device = next(model.parameters()).device
        self.has_weights = True

    def cut(self) -> nn.Module:
        """The model in pieces for torch's default group; whole where there is none."""
        model, self._whole = self._whole, None
        if model is None:
            model = copy.deepcopy(self._bare)
            self.has_weights = False
        if dist.is_initialized():
            self._shard(model)
        if not self.has_weights:
            _materialise(model, self._device)
        parameters = dict(model.named_parameters())
        for group, names in zip(self._optimizer.param_groups, self._names, strict=True):
            group["params"] = [parameters[name] for name in names]
        self._optimizer.state.clear()
        return model

    def loaded(self) -> None:
        """The weights are there now."""
        self.has_weights = True

    def stand_in(self) -> nn.Module:
        """Whole, of zeros that take no memory: its outputs have the right shapes and mean nothing.

        For the rest of a step that broke in its forward pass.
        """
        made = copy.deepcopy(self._bare)
        for module in made.modules():
            for name, parameter in module.named_parameters(recurse=False):
                zero = torch.zeros((), dtype=parameter.dtype, device=self._device)
                setattr(module, name, nn.Parameter(zero.expand(parameter.shape), False))
        return made


@torch.no_grad()
def _materialise(model: nn.Module, device: torch.device) -> None:
    """Give the parameters memory of undefined content; buffers keep theirs, and ties hold."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    places = [
        (module, name, id(parameter))
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
    ]
    model.to_empty(device=device)
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])
    first: dict[int, nn.Parameter] = {}
    for module, name, tie in places:
        setattr(module, name, first.setdefault(tie, getattr(module, name)))


def _without_weights(model: nn.Module) -> nn.Module:
    """A copy whose parameters have no memory; shared ones stay shared, and buffers are copied."""
    memo: dict[int, Tensor] = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad)
        for p in model.parameters()
    }
    return copy.deepcopy(model, memo)
