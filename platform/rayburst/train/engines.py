"""How one step's gradient comes about: fast (torch's own collectives) or exact (logical shards).

Both cut the global batch into the parts that this rank computes, one forward and backward pass
each, and leave the gradient of the mean loss over the global batch in `parameter.grad`. The data
order is none of their business, and neither is the optimizer.

A loss that is not finite makes every rank's gradient not finite: it enters as a factor of the seed
of the backward pass, so no exchange of its own is needed.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from functools import reduce
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from rayburst.errors import ExactModeError
from rayburst.train.order import rank_slice
from rayburst.train.run_options import RunOptions
from rayburst.train.shards import GradientTree

__all__ = ["Engine", "ExactEngine", "FastEngine", "Part", "engine_of"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """Samples that go through the model at once. `lane` owns their random numbers."""

    positions: range
    lane: int
    weight: float
    is_last: bool = False


class Engine(Protocol):
    """One step: `parts`, then `before` and `backward` for each part, then `finish`, `release`."""

    module: nn.Module
    """What runs the forward pass of a training step."""

    def parts(self, batch: range) -> list[Part]:
        """What this rank computes of the global batch, which may be nothing."""

    def before(self, part: Part) -> None:
        """Make ready for the forward pass of `part`."""

    def backward(self, loss: Any, part: Part) -> None:
        """Backward pass of the mean loss over the samples of `part`."""

    def finish(self) -> float:
        """Gradients into `parameter.grad`; returns the mean loss that this rank knows."""

    def release(self) -> None:
        """The gradients were used, or the step is given up."""


class FastEngine:
    """DistributedDataParallel, or a model that `fully_shard` has already spread over the ranks.

    The collectives take the plain mean over ranks; weighting each part by its share of the global
    batch times the world makes that the mean over samples, whatever the ranks hold.
    """

    def __init__(self, model: nn.Module, *, rank: int, world: int, micro_batch: int) -> None:
        self._rank, self._world, self._micro_batch = rank, world, micro_batch
        self._sharded = model if isinstance(model, FSDPModule) else None
        self._ddp: DistributedDataParallel | None = None
        if world > 1 and self._sharded is None and any(p.requires_grad for p in model.parameters()):
            self._ddp = DistributedDataParallel(model, gradient_as_bucket_view=True)
        self.module = self._ddp or model
        self._quiet = ExitStack()
        self._losses: list[tuple[Tensor, float]] = []

    def parts(self, batch: range) -> list[Part]:
        mine = rank_slice(len(batch), self._rank, self._world)
        if not len(mine):  # the collectives need every rank: a sample that counts nothing
            nothing = batch[:1]
            return [Part(positions=nothing, lane=self._rank, weight=0.0, is_last=True)]
        size = self._micro_batch or len(mine)
        cuts = [batch[i : min(i + size, mine.stop)] for i in range(mine.start, mine.stop, size)]
        return [
            Part(
                positions=cut,
                lane=self._rank + place * self._world,
                weight=len(cut) / len(batch),
                is_last=place == len(cuts) - 1,
            )
            for place, cut in enumerate(cuts)
        ]

    def before(self, part: Part) -> None:
        if self._sharded is not None:
            self._sharded.set_requires_gradient_sync(part.is_last)
        elif self._ddp is not None and not part.is_last:
            self._quiet.enter_context(self._ddp.no_sync())

    def backward(self, loss: Tensor, part: Part) -> None:
        value = loss.detach()
        loss.backward(value * 0 + part.weight * self._world)  # type: ignore[no-untyped-call]
        self._quiet.close()
        self._losses.append((value, part.weight))

    def finish(self) -> float:
        total = sum(weight for _, weight in self._losses) or 1.0
        values = torch.stack([value for value, _ in self._losses]).tolist()
        if len(values) == 1:
            return float(values[0])
        weights = [weight / total for _, weight in self._losses]
        return float(sum(v * w for v, w in zip(values, weights, strict=True)))

    def release(self) -> None:
        self._quiet.close()
        self._losses.clear()


class ExactEngine:
    """The same bits at every world size: see `rayburst.train.shards`.

    The last elements of the exchanged vector are the loss and, for each parameter, how many shards
    had a gradient for it: one that had none in any keeps None, as without shards.
    """

    def __init__(self, model: nn.Module, *, rank: int, world: int, shards: int) -> None:
        if isinstance(model, FSDPModule):
            raise ExactModeError(
                "the model is sharded with fully_shard; exact mode holds it whole on every worker. "
                "Leave out fully_shard, or give RunOptions(mode='fast')"
            )
        self.module = model
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._sizes = [p.numel() for p in self._parameters]
        dtype = reduce(torch.promote_types, (p.dtype for p in self._parameters))
        length = sum(self._sizes) + 1 + len(self._sizes)
        like = torch.empty(length, dtype=dtype, device=self._parameters[0].device)
        self._tree = GradientTree(shards=shards, rank=rank, world=world, like=like)
        self._next = self._tree.mine.start
        self._total: Tensor | None = None
        self._buffers = {name: buffer._version for name, buffer in model.named_buffers()}
        if world > 1:
            for tensor in (*model.parameters(), *model.buffers()):
                dist.broadcast(tensor.detach(), src=0)

    def parts(self, batch: range) -> list[Part]:
        cuts = {s: rank_slice(len(batch), s, self._tree.shards) for s in self._tree.mine}
        filled = [shard for shard, cut in cuts.items() if len(cut)]
        return [
            Part(
                positions=batch[cuts[shard].start : cuts[shard].stop],
                lane=shard,
                weight=len(cuts[shard]) / len(batch),
                is_last=shard == filled[-1],
            )
            for shard in filled
        ]

    def before(self, part: Part) -> None:
        for parameter in self._parameters:
            parameter.grad = None

    def backward(self, loss: Tensor, part: Part) -> None:
        value = loss.detach()
        loss.backward(value * 0 + part.weight)  # type: ignore[no-untyped-call]
        self._check_buffers()
        self._add_empty(part.lane)
        flat = self._tree.buffer()
        views, tail = self._views(flat)
        held = [p.grad for p in self._parameters]
        torch._foreach_copy_(
            [v for v, g in zip(views, held, strict=True) if g is not None],
            [g for g in held if g is not None],
        )
        for view, gradient in zip(views, held, strict=True):
            if gradient is None:
                view.zero_()
        tail[0] = value * part.weight
        tail[1:] = torch.tensor([float(g is not None) for g in held])
        for parameter in self._parameters:
            parameter.grad = None
        self._tree.add(part.lane, flat)
        self._next = part.lane + 1

    def finish(self) -> float:
        self._add_empty(self._tree.mine.stop)
        self._total = self._tree.total()
        views, tail = self._views(self._total)
        loss, *counts = tail.tolist()
        for parameter, view, count in zip(self._parameters, views, counts, strict=True):
            parameter.grad = view.to(parameter.dtype) if count else None
        return float(loss)

    def release(self) -> None:
        if self._total is not None:
            self._tree.give_back(self._total)
        self._total = None
        self._tree.forget()
        self._next = self._tree.mine.start

    def _add_empty(self, stop: int) -> None:
        """Shards without a sample, in the short last batch of a run, add nothing."""
        for shard in range(self._next, stop):
            self._tree.add(shard, self._tree.buffer().zero_())
        self._next = stop

    def _views(self, flat: Tensor) -> tuple[list[Tensor], Tensor]:
        pieces = torch.split(flat, [*self._sizes, 1 + len(self._sizes)])
        views = [v.view(p.shape) for v, p in zip(pieces[:-1], self._parameters, strict=True)]
        return views, pieces[-1]

    def _check_buffers(self) -> None:
        """State that a forward pass changes belongs to no shard."""
        changed = [
            name
            for name, buffer in self.module.named_buffers()
            if buffer._version != self._buffers.get(name)
        ]
        if changed:
            raise ExactModeError(
                f"the forward pass changed the buffers {', '.join(changed)} (BatchNorm does so): "
                "they depend on what each worker saw. Use GroupNorm or LayerNorm, freeze them with "
                ".eval(), or give RunOptions(mode='fast')"
            )


def engine_of(model: nn.Module, options: RunOptions, *, rank: int, world: int) -> Engine:
    """The engine that `options` ask for."""
    if options.mode == "exact":
        return ExactEngine(model, rank=rank, world=world, shards=options.shards)
    return FastEngine(model, rank=rank, world=world, micro_batch=options.micro_batch)
