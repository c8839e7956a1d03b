"""The norm of gradients that lie in pieces on many ranks, and clipping by it.

    norm = total_norm(held, sharing)      # the same on every rank
    scale_gradients(held, 0.5)

Each rank sums the squares of what it holds and divides by the number of ranks that hold the same
piece; one all-reduce over the ranks that hold one copy of the model gives the whole. A tied weight
that two stages hold is counted in the first.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm

__all__ = ["Sharing", "local_gradient", "scale_gradients", "total_norm"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Sharing:
    """The ranks that hold one copy of the model: their group, and its extent along shard, tensor.

    group: None where one rank holds all of it.
    """

    group: dist.ProcessGroup | None
    shard: int
    tensor: int


def local_gradient(parameter: Tensor) -> Tensor | None:
    """This rank's piece of a gradient, cut as the parameter is.

    torch leaves the gradient of a split embedding whole on every rank.
    """
    gradient = parameter.grad
    if not isinstance(gradient, DTensor) or not isinstance(parameter, DTensor):
        return gradient
    if gradient.placements != parameter.placements:
        gradient = gradient.redistribute(placements=parameter.placements)
        parameter.grad = gradient
    return gradient.to_local()


def holders(parameter: Tensor, sharing: Sharing) -> int:
    """How many ranks of one stage hold the same piece of `parameter`."""
    split = 1
    if isinstance(parameter, DTensor):
        mesh = parameter.device_mesh
        names = mesh.mesh_dim_names or ()
        for at, (name, placement) in enumerate(zip(names, parameter.placements, strict=True)):
            if name in ("shard", "tensor") and not placement.is_replicate():
                split *= mesh.size(at)  # mesh[name] would make a mesh for each weight
    return sharing.shard * sharing.tensor // split


@torch.no_grad()
def total_norm(parameters: Iterable[Tensor], sharing: Sharing) -> Tensor:
    """L2 norm over all gradients of the model, a float32 scalar; call it on all ranks together."""
    by_holders: dict[int, list[Tensor]] = {}
    device = torch.device("cpu")
    for parameter in parameters:
        gradient = local_gradient(parameter)
        device = parameter.device
        if gradient is not None:
            by_holders.setdefault(holders(parameter, sharing), []).append(gradient)
    squares = torch.zeros((), device=device)
    for count, gradients in by_holders.items():
        squares += get_total_norm(gradients).float().square() / count
    if sharing.group is not None:
        dist.all_reduce(squares, group=sharing.group)
    return squares.sqrt()


@torch.no_grad()
def scale_gradients(parameters: Iterable[Tensor], factor: Tensor | float) -> None:
    """Multiply all gradients in place."""
    gradients = [g for g in map(local_gradient, parameters) if g is not None]
    if gradients:
        torch._foreach_mul_(gradients, factor)
