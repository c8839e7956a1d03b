"""Groups of devices that stand close together. Pure.

    placed, spare = assemble(layout, [Device(node="a"), Device(node="a"), Device(node="b"), ...])
    placed[5]                                # the device of rank 5

Tensor groups never leave a node: they talk in every layer. Shard groups never leave a rack, and
stay in a node where they can: they move every weight. Pipelines and copies may stand anywhere, the
stages of one close together where they can.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

from rayburst.train.parallel.layout import Layout, Place

__all__ = ["Device", "assemble", "copies", "model_groups"]


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class Device:
    """One device: its rack and node by label, and its number on the node."""

    rack: str = ""
    node: str
    index: int = 0


Group = tuple[Device, ...]


def model_groups(layout: Layout, devices: Sequence[Device]) -> list[Group]:
    """As many whole models (tensor x pipeline) as `devices` hold, each in order (stage, tensor)."""
    tensor, _ = _gather([(d,) for d in devices], layout.tensor, [_node])
    models, _ = _gather(tensor, layout.pipeline, [_rack, _anywhere])
    return models


def copies(layout: Layout, devices: Sequence[Device]) -> list[Group]:
    """As many sharded copies of the model as `devices` hold, in order (stage, shard, tensor)."""
    tensor, _ = _gather([(d,) for d in devices], layout.tensor, [_node])
    stages, _ = _gather(tensor, layout.shard, [_node, _rack])
    found, _ = _gather(stages, layout.pipeline, [_rack, _anywhere])
    return found


def assemble(layout: Layout, devices: Sequence[Device]) -> tuple[list[Device], list[Device]] | None:
    """The device of each rank, and those left over. None when there are too few close ones."""
    found = copies(layout, devices)
    if len(found) < layout.data:
        return None
    placed = [_device_at(found, layout.place_of(rank), layout) for rank in range(layout.world)]
    taken = set(placed)
    return placed, [device for device in devices if device not in taken]


def _device_at(found: list[Group], place: Place, layout: Layout) -> Device:
    within = (place.pipeline * layout.shard + place.shard) * layout.tensor + place.tensor
    return found[place.data][within]


Closeness = Callable[[Group], tuple[str, ...]]


def _node(group: Group) -> tuple[str, ...]:
    """The one node of a group; a group over several nodes has a name of its own, shared by none."""
    nodes = sorted({(d.rack, d.node) for d in group})
    return tuple(name for pair in nodes for name in pair)


def _rack(group: Group) -> tuple[str, ...]:
    return tuple(sorted({device.rack for device in group}))


def _anywhere(group: Group) -> tuple[str, ...]:
    return ()


def _gather(
    units: Sequence[Group], size: int, near: Sequence[Closeness]
) -> tuple[list[Group], list[Group]]:
    """Groups of `size` units, the closest first; and the units left over."""
    made: list[Group] = []
    left = sorted(units)
    for closeness in near:
        ordered, left = sorted(left, key=lambda unit: (closeness(unit), unit)), []
        for _, close in groupby(ordered, key=closeness):
            same = list(close)
            whole = len(same) - len(same) % size
            made += [_joined(same[start : start + size]) for start in range(0, whole, size)]
            left += same[whole:]
    return sorted(made), left


def _joined(units: Sequence[Group]) -> Group:
    return tuple(device for unit in units for device in unit)
