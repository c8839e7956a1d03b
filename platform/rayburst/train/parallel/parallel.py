"""A model that learns on many devices, in any layout, as it would on one.

    parallel = Parallel(model, ParallelOptions(layout=Layout(shard=2, tensor=2)), AdamW)
    loss = parallel.step(inputs, targets)              # this copy's samples; see `copy`
    checkpoints.save(parallel.state(), step=7)         # rayburst.checkpoint
    state = parallel.state(); checkpoints.load(state); parallel.load(state)

Every process makes one, with the same model, after torch.distributed is initialised. Inputs are the
samples of copy `layout.copy_of(rank)`: ranks of a tensor or pipeline group read the same ones.
With `mesh` only the processes that have a place in it make one.
Knows no Ray, no files and no schedule of the learning rate: set it in `optimizer.param_groups`.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from rayburst.errors import LayoutError
from rayburst.train.parallel.distribute import distribute
from rayburst.train.parallel.gradients import scale_gradients, total_norm
from rayburst.train.parallel.layout import Layout
from rayburst.train.parallel.mesh import Mesh
from rayburst.train.parallel.pipe import Pipe, equal_parts
from rayburst.train.parallel.plan import Plan, plan_for
from rayburst.train.parallel.precision import LossScale, Precision, compute_dtype
from rayburst.train.parallel.stage import Stage
from rayburst.train.parallel.state import held_parameters, held_state, prepare, take_groups

__all__ = ["Parallel", "ParallelOptions"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ParallelOptions:
    """How a model is trained on many devices.

    micro_batch: samples taken through the model at once; 0 for all of a copy's (in a pipeline:
      as few parts as it has stages). Gradients add up over the parts of a step.
    clip_norm: largest L2 norm of the whole gradient; 0 for no clipping.
    recompute: keep only each block's input for the backward pass and compute the rest again
      (Chen et al. 2016, https://arxiv.org/abs/1604.06174).
    compile_backend: torch.compile each block with it, for example "inductor".
    least_shard: in an elastic run, ranks that weights must be spread over to fit.
    """

    layout: Layout = field(default_factory=Layout)
    precision: Precision = "fp32"
    micro_batch: int = 0
    clip_norm: float = 1.0
    recompute: bool = False
    compile_backend: str | None = None
    least_shard: int = 1

    def __post_init__(self) -> None:
        compute_dtype(self.precision)
        if self.micro_batch < 0 or self.clip_norm < 0:
            raise LayoutError(
                f"micro_batch={self.micro_batch}, clip_norm={self.clip_norm}: give 0 or more"
            )


class Parallel:
    """See the module's head. Making one is collective, and so are its methods."""

    def __init__(
        self,
        model: nn.Module,
        options: ParallelOptions,
        make_optimizer: Callable[[list[nn.Parameter]], Optimizer],
        *,
        plan: Plan | None = None,
        device: torch.device | None = None,
        mesh: Mesh | None = None,
    ) -> None:
        self.options, self.layout = options, options.layout
        self.device = device or torch.device("cpu")
        plan = plan or plan_for(model)
        self._mesh = mesh or Mesh(self.layout, self.device, plan)
        place = self._mesh.place
        if place is None or self._mesh.layout != self.layout:
            raise LayoutError(f"{self.layout}: this process has no place in the mesh")
        self.copy = self.layout.copy_of(place)
        _check_units(model, plan, self.layout)
        self.stage = Stage(
            model, plan, index=self.layout.place_of(place).pipeline, count=self.layout.pipeline
        )
        if options.recompute and not plan.is_cut:
            raise LayoutError(
                "recompute=True keeps the inputs of blocks: give a plan with blocks, embed and "
                "unembed, or leave it out"
            )
        self.stage.recomputes = options.recompute
        self._runs = distribute(
            self.stage,
            self.layout,
            self._mesh.devices,
            device=self.device,
            precision=options.precision,
            compile_backend=options.compile_backend,
        )
        self._pipe = None
        if self._mesh.devices is not None and self.layout.pipeline > 1:
            self._pipe = Pipe(self.stage, self._runs, self._mesh, self._mesh.devices, self.device)
        self._scale = LossScale(options.precision)
        # DDP and FSDP2 take the plain mean over copies, a pipeline of whole stages the sum.
        takes_sum = self._pipe is not None and not self.layout.is_sharded
        self._mean_over = 1 if takes_sum else self.layout.copies
        self.optimizer = make_optimizer(list(held_parameters(self.stage).values()))

    def step(self, inputs: Tensor, targets: Tensor, *, share: float | None = None) -> Tensor:
        """Learn from one global batch; its mean loss, the same on all ranks.

        `share`: this copy's samples over the global batch's; equal shares where nothing is said.
        """
        loss = self.backward(inputs, targets, share=share)
        self.update()
        return loss

    def backward(self, inputs: Tensor, targets: Tensor, *, share: float | None = None) -> Tensor:
        """Add this batch's gradients to what is there; the mean loss over all copies."""
        share = 1 / self.layout.copies if share is None else share
        inputs = inputs.to(self.device, non_blocking=True)
        targets = targets.to(self.device, non_blocking=True)
        factor = share * self._mean_over * self._scale.value
        if self._pipe is not None:
            parts = equal_parts(len(inputs), self.options.micro_batch, self.layout.pipeline)
            loss = self._pipe.train(inputs, targets, parts=parts, factor=factor)
            self._pipe.share_gradients()
        else:
            loss = self._accumulate(inputs, targets, factor)
        return self._over_copies(loss * share)

    def update(self) -> Tensor:
        """Clip and take an optimizer step; the norm of the whole gradient before clipping.

        In float16 a norm that is not finite skips the step and halves the loss's scale.
        """
        norm = self.norm()
        self.learn(norm)
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def norm(self) -> Tensor:
        """The L2 norm of the whole gradient, the same on all ranks."""
        return total_norm(self._counted(), self._mesh.sharing) / self._scale.value

    def learn(self, norm: Tensor) -> None:
        """What `update` does with the norm: clip and step, or in float16 skip the step."""
        is_finite = not self._scale.is_used or math.isfinite(norm.item())
        if is_finite:
            self._clip(list(held_parameters(self.stage).values()), norm)
            self.optimizer.step()
        self._scale.update(is_finite=is_finite)

    @torch.no_grad()
    def evaluate(self, inputs: Tensor, targets: Tensor, *, share: float | None = None) -> Tensor:
        """The mean loss over all copies, without learning."""
        share = 1 / self.layout.copies if share is None else share
        inputs, targets = inputs.to(self.device), targets.to(self.device)
        self._runs.eval()
        try:
            if self._pipe is not None:
                parts = equal_parts(len(inputs), self.options.micro_batch, self.layout.pipeline)
                loss = self._pipe.evaluate(inputs, targets, parts=parts)
            else:
                loss = torch.zeros((), device=self.device)
                for part in self._parts(len(inputs)):
                    weight = (part.stop - part.start) / len(inputs)
                    loss += weight * self._loss(inputs[part], targets[part])
            return self._over_copies(loss * share)
        finally:
            self._runs.train()

    def state(self) -> dict[str, Any]:
        """What this rank holds of weights and optimizer, under names that all layouts share."""
        prepare(self.optimizer)
        return {**held_state(self.stage, self.optimizer), "scale": self._scale.state()}

    def load(self, state: dict[str, Any]) -> None:
        """Take up a state that came from `state()` and was filled from a checkpoint."""
        take_groups(self.optimizer, state["optimizer"]["groups"])
        self._scale.load(state["scale"])

    def _accumulate(self, inputs: Tensor, targets: Tensor, factor: float) -> Tensor:
        rows = len(inputs)
        total = torch.zeros((), device=self.device)
        for part in self._parts(rows):
            weight = (part.stop - part.start) / rows
            with self._reducing(is_last=part.stop == rows):
                loss = self._loss(inputs[part], targets[part])
                torch.autograd.backward(loss * (weight * factor))
            total += weight * loss.detach()
        return total

    def _parts(self, rows: int) -> Iterator[slice]:
        size = self.options.micro_batch or rows
        return (slice(start, min(start + size, rows)) for start in range(0, rows, size))

    def _loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return self.stage.plan.loss(self._runs(inputs), targets)

    def _reducing(self, *, is_last: bool) -> contextlib.AbstractContextManager[Any]:
        """Whole copies exchange gradients only after the last part of a step.

        Shards exchange them after each: what is not reduced yet would be held whole.
        """
        if isinstance(self._runs, FSDPModule):
            self._runs.set_requires_all_reduce(is_last)
        if isinstance(self._runs, DistributedDataParallel) and not is_last:
            return self._runs.no_sync()
        return contextlib.nullcontext()

    def _counted(self) -> Iterator[nn.Parameter]:
        """Parameters whose gradients this rank adds to the norm: tied ones in the first stage."""
        tied = set(self.stage.plan.tied.values())
        for name, parameter in held_parameters(self.stage).items():
            if self.stage.is_first or name not in tied:
                yield parameter

    def _clip(self, held: list[nn.Parameter], norm: Tensor) -> None:
        limit, scale = self.options.clip_norm, self._scale.value
        if limit:
            scale_gradients(held, (limit / (norm + 1e-6)).clamp(max=1.0) / scale)
        elif scale != 1.0:
            scale_gradients(held, 1.0 / scale)

    def _over_copies(self, share_of_loss: Tensor) -> Tensor:
        """The sum over copies, from the ranks that know it: each tensor group's last stage."""
        if self._mesh.devices is None:
            return share_of_loss
        total = share_of_loss.float() / self.layout.tensor
        dist.all_reduce(total, group=self._mesh.group)
        return total


def _check_units(model: nn.Module, plan: Plan, layout: Layout) -> None:
    units = plan.tensor_units(model) if plan.tensor_units is not None else None
    if units is not None and units % layout.tensor:
        raise LayoutError(f"tensor={layout.tensor} does not divide the model's {units} heads")
