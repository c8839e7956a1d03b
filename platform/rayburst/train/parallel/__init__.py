"""Models larger than one device: layouts, precision, memory.

    from rayburst.train.parallel import Layout, Parallel, ParallelOptions

Names are loaded when used: `Layout` alone needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rayburst.train.parallel.elastic import NextMesh, next_mesh, whole_mesh
    from rayburst.train.parallel.fit import LayoutPlan, Node
    from rayburst.train.parallel.layout import Layout
    from rayburst.train.parallel.parallel import Parallel, ParallelOptions
    from rayburst.train.parallel.plan import Plan
    from rayburst.train.parallel.topology import Device

__all__ = [
    "Device",
    "Layout",
    "LayoutPlan",
    "NextMesh",
    "Node",
    "Parallel",
    "ParallelOptions",
    "Plan",
    "next_mesh",
    "whole_mesh",
]

_HOMES = {
    "Device": "topology",
    "Layout": "layout",
    "LayoutPlan": "fit",
    "NextMesh": "elastic",
    "Node": "fit",
    "Parallel": "parallel",
    "ParallelOptions": "parallel",
    "Plan": "plan",
    "next_mesh": "elastic",
    "whole_mesh": "elastic",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
