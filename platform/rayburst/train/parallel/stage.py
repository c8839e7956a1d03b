"""A model's forward pass as one piece, or as one stage of a pipeline.

    stage = Stage(model, plan, index=0, count=2)     # takes away from `model` what others hold
    x = stage(inputs)

Parameters keep the names they have in the whole model, so that checkpoints of all layouts name
the same things.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rayburst.errors import LayoutError
from rayburst.train.parallel.plan import Plan

__all__ = ["Stage", "blocks_of"]


def blocks_of(count: int, *, index: int, stages: int) -> range:
    """Which of `count` blocks stage `index` holds; earlier stages take the remainder last.

    The last stage also has the output layer, so a block more goes to the first stages only.
    """
    each, more = divmod(count, stages)
    start = index * each + min(index, more)
    return range(start, start + each + (index < more))


class Stage(nn.Module):
    """Runs the parts of `model` that stage `index` of `count` holds."""

    def __init__(self, model: nn.Module, plan: Plan, *, index: int = 0, count: int = 1) -> None:
        super().__init__()
        self.model = model
        self.plan = plan
        self.is_first, self.is_last = index == 0, index == count - 1
        self.recomputes = False
        self.autocast: torch.dtype | None = None
        self._cut(index, count)

    def _cut(self, index: int, count: int) -> None:
        plan, model = self.plan, self.model
        if count == 1:
            return
        if plan.blocks is None or not plan.is_cut:
            raise LayoutError(
                "a pipeline needs a plan with blocks, embed and unembed: it cuts between blocks"
            )
        blocks = model.get_submodule(plan.blocks)
        names = [name for name, _ in blocks.named_children()]
        if count > len(names):
            raise LayoutError(f"pipeline={count}: the model has {len(names)} blocks to divide")
        mine = blocks_of(len(names), index=index, stages=count)
        kept = {names[i]: blocks.get_submodule(names[i]) for i in mine}
        model.set_submodule(plan.blocks, nn.ModuleDict(kept))
        held = {name for name, is_mine in self._ends().items() if is_mine}
        for name in {n for names in plan.ends.values() for n in names} - held:
            model.set_submodule(name, nn.Identity())

    def _ends(self) -> dict[str, bool]:
        """The submodules outside of the blocks, and whether this stage holds them."""
        found: dict[str, bool] = {}
        for end, is_mine in (("embed", self.is_first), ("unembed", self.is_last)):
            for name in self.plan.ends.get(end, ()):
                found[name] = found.get(name, False) or is_mine
        return found

    def blocks(self) -> list[nn.Module]:
        """The blocks that are here, in order; none when the plan names none."""
        if self.plan.blocks is None:
            return []
        return [block for _, block in self.model.get_submodule(self.plan.blocks).named_children()]

    def forward(self, x: Tensor) -> Tensor:
        """The stage's output for the inputs, or for the stage before's output."""
        with self.casting(x.device.type):
            return self._run(x)

    def casting(self, device: str) -> torch.autocast:
        """The context that this stage computes in. An outer one keeps short weights for inner."""
        dtype = self.autocast or torch.bfloat16
        return torch.autocast(device, dtype=dtype, enabled=self.autocast is not None)

    def _run(self, x: Tensor) -> Tensor:
        plan = self.plan
        if plan.embed is None or plan.unembed is None:
            whole: Tensor = self.model(x)
            return whole
        if self.is_first:
            x = getattr(self.model, plan.embed)(x)
        for block in self.blocks():
            x = self._block(block, x)
        if self.is_last:
            x = getattr(self.model, plan.unembed)(x)
        return x

    def _block(self, block: nn.Module, x: Tensor) -> Tensor:
        if self.recomputes and torch.is_grad_enabled():
            again: Any = checkpoint(block, x, use_reentrant=False)
            return again  # type: ignore[no-any-return]
        out: Tensor = block(x)
        return out
