"""State from one rank to all: what a joiner, or a rank that fell behind, takes up.

Tensors travel one by one, several at once; names, shapes and small values before them. Collective
on torch's default group, so on GPUs it is NCCL that carries them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from rayburst.checkpoint.tree import flatten, rebuild

__all__ = ["hand_over"]

_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class _Shape:
    """A tensor that is on its way."""

    size: torch.Size
    dtype: torch.dtype
    device_type: str


def hand_over(state: Mapping[str, Any] | None, source: int) -> dict[str, Any]:
    """The state of rank `source`, which gives it; the others give None.

    `state` is a nested dict of tensors and small values. On the source its own tensors come back.
    """
    is_source = dist.get_rank() == source
    leaves, paths = flatten(state or {})
    outline = {name: _outlined(value) for name, value in leaves.items()}
    box: list[Any] = [(outline, paths) if is_source else None]
    dist.broadcast_object_list(box, src=source)
    outline, paths = box[0]
    if not is_source:
        leaves = {name: _empty(value) for name, value in outline.items()}
    under_way: list[Any] = []
    for name, value in outline.items():
        if isinstance(value, _Shape):
            leaves[name] = leaves[name].detach().contiguous()
            under_way.append(dist.broadcast(leaves[name], src=source, async_op=True))
        if len(under_way) >= _AT_ONCE:
            under_way.pop(0).wait()
    for work in under_way:
        work.wait()
    return rebuild(leaves, paths)


def _outlined(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return _Shape(value.shape, value.dtype, value.device.type)
    return value


def _empty(value: Any) -> Any:
    if isinstance(value, _Shape):
        return torch.empty(value.size, dtype=value.dtype, device=value.device_type)
    return value
