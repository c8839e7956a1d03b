"""A model in a layout as a run trains it: on a whole mesh, saved, and back in another layout.

    laid_out = LaidOut(model, options, make_optimizer, [make_schedule], place=place)
    batch = laid_out.looped(inputs, targets)         # what the loop gives to run.backward
    engine = laid_out.engine(run_options, rank=0, world=4)

The group that there is decides the mesh (`parallel.elastic.whole_mesh`): tensor, pipeline and shard
groups have the size that `options.layout` says, and the number of copies follows the workers. Ranks
that make up no whole model are spare: they keep step with the others and compute nothing.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from rayburst.errors import ExactModeError, TrainError
from rayburst.train.engines import Engine, Part
from rayburst.train.hardware import this_device
from rayburst.train.machines import node_name
from rayburst.train.order import rank_slice
from rayburst.train.parallel.elastic import NextMesh, whole_mesh
from rayburst.train.parallel.layout import Layout
from rayburst.train.parallel.mesh import Mesh
from rayburst.train.parallel.parallel import Parallel, ParallelOptions
from rayburst.train.parallel.plan import Plan, plan_for
from rayburst.train.parallel.topology import Device
from rayburst.train.place import Place
from rayburst.train.prepared import Prepared
from rayburst.train.roll import from_everyone
from rayburst.train.run_options import RunOptions

__all__ = ["Batch", "LaidOut", "Looped", "MakeOptimizer", "MakeSchedule"]

MakeOptimizer = Callable[[list[nn.Parameter]], Optimizer]
MakeSchedule = Callable[[Optimizer], LRScheduler]


@dataclass(frozen=True, slots=True)
class Batch:
    """Samples that are to be learned from: a pipeline's forward and backward passes are one."""

    inputs: Tensor
    targets: Tensor


class Looped(nn.Module):
    """What the loop calls. `model(inputs, targets)` is for `run.backward`."""

    def __init__(
        self, parallel: Parallel | None, layout: Layout, told: Callable[[float], float]
    ) -> None:
        super().__init__()
        self.stage = parallel.stage if parallel is not None else None
        self.layout = layout
        self._parallel, self._told = parallel, told

    @property
    def copy(self) -> int | None:
        """Which of `layout.copies` this rank is part of; None for a spare one."""
        return None if self._parallel is None else self._parallel.copy

    def forward(self, inputs: Tensor, targets: Tensor) -> Batch:
        """The samples of this rank's copy, to be given to `run.backward`."""
        return Batch(inputs, targets)

    def evaluate(self, inputs: Tensor, targets: Tensor, *, share: float | None = None) -> float:
        """The mean loss over all copies, without learning; every rank calls it.

        `share`: this copy's samples over all that are evaluated; equal shares if not said.
        """
        value = 0.0
        if self._parallel is not None:
            value = float(self._parallel.evaluate(inputs, targets, share=share))
        return self._told(value)


class _Engine:
    """One step in a layout: this copy's samples at once. A spare rank has no part in it."""

    def __init__(self, laid_out: LaidOut) -> None:
        self.module: nn.Module = laid_out.looped
        self._parallel, self._told = laid_out.parallel, laid_out.told
        self._loss = 0.0

    def parts(self, batch: range) -> list[Part]:
        parallel = self._parallel
        if parallel is None:
            return []
        mine = rank_slice(len(batch), parallel.copy, parallel.layout.copies)
        cut = batch[mine.start : mine.stop] or batch[:1]  # the collectives need every copy
        weight = len(mine) / len(batch)
        return [Part(positions=cut, lane=parallel.copy, weight=weight, is_last=True)]

    def before(self, part: Part) -> None:
        pass

    def backward(self, loss: Batch, part: Part) -> None:
        if not isinstance(loss, Batch) or self._parallel is None:
            raise TrainError(
                f"run.backward got a {type(loss).__name__}: a model in a layout computes its loss "
                "itself. Write run.backward(model(inputs, targets))"
            )
        mean = self._parallel.backward(loss.inputs, loss.targets, share=part.weight)
        self._loss = mean.item()

    def finish(self) -> float:
        return self._told(self._loss)

    def release(self) -> None:
        self._loss = 0.0


class LaidOut(Prepared):
    """See the module's head. Making one is collective, and so are its methods."""

    def __init__(
        self,
        model: nn.Module,
        options: ParallelOptions,
        make_optimizer: MakeOptimizer,
        make_schedules: Sequence[MakeSchedule],
        *,
        place: Place,
        plan: Plan | None = None,
        extras: dict[str, Any] | None = None,
    ) -> None:
        device, plan = this_device(), plan or plan_for(model)
        self.mesh = _mesh_of_everyone(options, place)
        made = Mesh(self.mesh.layout, device, plan, ranks=self.mesh.ranks)
        self._first, self._device = self.mesh.ranks[0], device
        self._norm, self._may_skip = 0.0, options.precision == "fp16"
        self.parallel: Parallel | None = None
        held: nn.Module
        if made.place is None:  # something to learn, so that its schedules keep step
            nothing = nn.Linear(1, 1)
            optimizer, held = make_optimizer(list(nothing.parameters())), nothing
        else:
            here = replace(options, layout=self.mesh.layout)
            self.parallel = Parallel(
                model, here, make_optimizer, plan=plan, device=device, mesh=made
            )
            optimizer, held = self.parallel.optimizer, self.parallel.stage
        schedules = tuple(make(optimizer) for make in make_schedules)
        super().__init__(held, optimizer, schedules, clip_norm=None, extras=extras or {})
        self.looped = Looped(self.parallel, self.mesh.layout, self.told)

    @property
    def words(self) -> dict[str, Any]:
        """For the run log."""
        return {"layout": str(self.mesh.layout), "spare": list(self.mesh.spare)}

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self._device

    def told(self, value: float) -> float:
        """What the mesh knows, on spare ranks too."""
        if not self.mesh.spare:
            return value
        shared = torch.tensor(value, device=self._device)
        dist.broadcast(shared, self._first)
        return float(shared)

    def engine(self, options: RunOptions, *, rank: int, world: int) -> Engine:
        """For the group as it is."""
        if options.mode == "exact":
            raise ExactModeError(
                "exact mode holds the model whole on every worker. Give RunOptions(mode='fast'), "
                "or run.prepare in place of run.lay_out"
            )
        if options.micro_batch:
            raise TrainError(
                f"RunOptions(micro_batch={options.micro_batch}): in a layout give "
                f"ParallelOptions(micro_batch={options.micro_batch})"
            )
        return _Engine(self)

    def gradient_norm(self) -> float:
        """The norm of the whole gradient, the same on every rank.

        In float16 one that is not finite is part of the plan, and 0 here: `learn` skips the step.
        """
        norm = 0.0 if self.parallel is None else self.parallel.norm().item()
        self._norm = self.told(norm)
        return 0.0 if self._may_skip and not math.isfinite(self._norm) else self._norm

    def learn(self, norm: float) -> None:
        """Clip and step."""
        if self.parallel is None:
            self._optimizer.step()  # without gradients; schedules want to see it
        else:
            self.parallel.learn(torch.tensor(self._norm, device=self._device))

    def forget_step(self) -> None:
        """Drop the gradients of a step that was not done."""
        self._optimizer.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Any]:
        """What this rank holds, by the names of the whole model; a spare one holds nothing."""
        if self.parallel is None:
            return {}
        return {**self.parallel.state(), "extras": self.kept()}

    def load(self, state: dict[str, Any]) -> None:
        """Take up what `state` gave and a checkpoint of any layout has filled."""
        if self.parallel is not None:
            self.parallel.load(state)
            self.take_kept(state["extras"])

    @torch.no_grad()
    def digest(self) -> str:
        """SHA-256 over the names and digests of all weights; the same in every layout."""
        found: dict[str, str] = {}
        if self.parallel is not None:
            for name, value in self.parallel.state()["model"].items():
                whole: Tensor = value.full_tensor() if isinstance(value, DTensor) else value
                raw = whole.detach().cpu().contiguous().flatten().view(torch.uint8)
                found[name] = hashlib.sha256(raw.numpy().tobytes()).hexdigest()
        everyone = {name: one for part in from_everyone(found) for name, one in part.items()}
        return hashlib.sha256(repr(sorted(everyone.items())).encode()).hexdigest()


def _mesh_of_everyone(options: ParallelOptions, place: Place) -> NextMesh:
    names = from_everyone(node_name(place))
    devices = [Device(node=name, index=rank) for rank, name in enumerate(names)]
    return whole_mesh(options.layout, devices, least_shard=options.least_shard)
