"""A batch through a pipeline: 1F1B over equal parts (Narayanan et al. 2021).

    pipe = Pipe(stage, runs, layout, mesh, device)
    loss = pipe.train(inputs, targets, parts=4, factor=1.0)

Inputs are read by the first stage and targets by the last. The bubble, the share of the time in
which a stage waits, is (p - 1) / (m + p - 1) for p stages and m parts of equal cost.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.pipelining import PipelineStage, Schedule1F1B

from rayburst.errors import LayoutError
from rayburst.train.parallel.gradients import local_gradient
from rayburst.train.parallel.mesh import Mesh
from rayburst.train.parallel.stage import Stage

__all__ = ["Pipe", "equal_parts"]

BUCKET_BYTES = 25 * 2**20  # as DDP's


def equal_parts(rows: int, most: int, least_parts: int) -> int:
    """Into how many equal parts `rows` samples go: at most `most` in each, at least so many parts.

    `most` 0 asks for the fewest parts that are allowed. LayoutError when there are too few rows.
    """
    for parts in range(least_parts, rows + 1):
        if rows % parts == 0 and (most == 0 or rows // parts <= most):
            return parts
    raise LayoutError(
        f"{rows} samples do not fill a pipeline of {least_parts} stages: each rank needs at least "
        f"{least_parts} samples a step. Give a larger global batch or fewer stages"
    )


class Pipe:
    """One rank's end of a pipeline. All ranks of it make the same calls."""

    def __init__(
        self, stage: Stage, runs: nn.Module, mesh: Mesh, devices: DeviceMesh, device: torch.device
    ) -> None:
        self._stage, self._runs, self._device = stage, runs, device
        layout = mesh.layout
        self._count = layout.pipeline
        self._mesh = devices["pipeline"]
        self._index = self._mesh.get_local_rank()
        self._factor = 1.0
        self._schedules: dict[tuple[Any, ...], Schedule1F1B] = {}
        self._ends = mesh.ends
        adds_up = layout.data > 1 and not layout.is_sharded
        self._copies = devices["data"].get_group() if adds_up else None

    def train(self, inputs: Tensor, targets: Tensor, *, parts: int, factor: float) -> Tensor:
        """Forward and backward of factor * mean loss; the mean loss on the last stage, else 0."""
        return self._run(inputs, targets, parts, factor, is_training=True)

    def evaluate(self, inputs: Tensor, targets: Tensor, *, parts: int) -> Tensor:
        """The mean loss on the last stage, else 0."""
        return self._run(inputs, targets, parts, 1.0, is_training=False)

    def _run(
        self, inputs: Tensor, targets: Tensor, parts: int, factor: float, *, is_training: bool
    ) -> Tensor:
        self._factor = factor / parts
        losses: list[Tensor] = []
        schedule = self._schedule(inputs, parts, is_training=is_training)
        given = (inputs,) if self._stage.is_first else ()
        ends: dict[str, Any] = {}
        if self._stage.is_last:
            ends = {"target": targets, "losses": losses}
        with self._stage.casting(self._device.type):  # short weights are made once for all parts
            (schedule.step if is_training else schedule.eval)(*given, return_outputs=False, **ends)
        if not losses:
            return torch.zeros((), device=self._device)
        return torch.stack([loss.detach() for loss in losses]).sum() / factor

    def share_gradients(self) -> None:
        """After `train`: add up gradients over copies, where FSDP2 does not, and of tied weights.

        DDP is made for one backward pass a step, and a pipeline has one for each part.
        """
        held = dict(self._stage.model.named_parameters())
        if self._copies is not None:
            found = [g for g in map(local_gradient, held.values()) if g is not None]
            for bucket in _buckets(found):
                flat = torch.cat([gradient.flatten() for gradient in bucket])
                dist.all_reduce(flat, group=self._copies)
                pieces = torch.split(flat, [gradient.numel() for gradient in bucket])
                for gradient, piece in zip(bucket, pieces, strict=True):
                    gradient.copy_(piece.view_as(gradient))
        if self._ends is None or not (self._stage.is_first or self._stage.is_last):
            return
        for alias, original in self._stage.plan.tied.items():
            tied = local_gradient(held[original if self._stage.is_first else alias])
            if tied is not None:
                dist.all_reduce(tied, group=self._ends)

    def _schedule(self, inputs: Tensor, parts: int, *, is_training: bool) -> Schedule1F1B:
        """Its receive buffers have the shape of one part, so each shape has a schedule."""
        key = (*inputs.shape, parts, is_training)
        if key not in self._schedules:
            stage = PipelineStage(
                self._runs, self._index, self._count, self._device, group=self._mesh.get_group()
            )
            self._schedules[key] = Schedule1F1B(stage, parts, loss_fn=self._loss, scale_grads=False)
        return self._schedules[key]

    def _loss(self, output: Tensor, target: Tensor) -> Tensor:
        return self._stage.plan.loss(output, target) * self._factor


def _buckets(gradients: list[Tensor]) -> Iterator[list[Tensor]]:
    """Runs of gradients of about `BUCKET_BYTES`: one all-reduce for each."""
    bucket: list[Tensor] = []
    for gradient in gradients:
        bucket.append(gradient)
        if sum(g.nbytes for g in bucket) >= BUCKET_BYTES:
            yield bucket
            bucket = []
    if bucket:
        yield bucket
