"""Which ranks form the next mesh when some are lost. Pure.

    after = next_mesh(layout, devices, lost={3})     # devices[rank] says where each rank stands
    after.layout, after.ranks                        # old rank that becomes new rank 0, 1, ...
    begin = whole_mesh(layout, devices)              # of a new group, of any size

Elastic along data and shard only: tensor and pipeline groups stay as large as they are. A model
group (tensor x pipeline) that lost a member is rebuilt from what is left of other broken groups,
where that stands close enough, or left out. Whole groups stay whole.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from rayburst.errors import LayoutError
from rayburst.train.parallel.layout import Layout
from rayburst.train.parallel.topology import Device, model_groups

__all__ = ["NextMesh", "next_mesh", "whole_mesh"]


@dataclass(frozen=True, kw_only=True, slots=True)
class NextMesh:
    """The layout after losses. `ranks[new]` is the old rank; `spare` are alive and unused.

    rebuilt: how many model groups were put together from remains.
    """

    layout: Layout
    ranks: tuple[int, ...]
    spare: tuple[int, ...]
    rebuilt: int


def next_mesh(
    layout: Layout,
    devices: Sequence[Device],
    *,
    lost: Collection[int],
    least_shard: int = 1,
) -> NextMesh:
    """The largest whole mesh of the survivors.

    `least_shard`: ranks that weights must be spread over to fit, as `plan_layout` says. The shard
    group keeps its size while enough models are left, and shrinks before anything stops.
    LayoutError when not even the smallest mesh is left.
    """
    if len(devices) != layout.world:
        raise LayoutError(f"{len(devices)} devices for the {layout.world} ranks of {layout}")
    whole, remains = _sorted_out(layout, set(lost))
    by_device = {devices[rank]: rank for rank in remains}
    found = model_groups(layout, [devices[rank] for rank in remains])
    rebuilt = [tuple(by_device[device] for device in group) for group in found]
    models = [*whole, *rebuilt]
    after = _shrunk(layout, len(models), least_shard)
    used = models[: after.copies]
    ranks = _numbered(after, used)
    alive = set(range(layout.world)) - set(lost)
    return NextMesh(
        layout=after,
        ranks=ranks,
        spare=tuple(sorted(alive - set(ranks))),
        rebuilt=sum(group in rebuilt for group in used),
    )


def whole_mesh(layout: Layout, devices: Sequence[Device], *, least_shard: int = 1) -> NextMesh:
    """The largest whole mesh of a group that has just met; `devices[rank]` says where a rank is.

    `layout` says how large tensor, pipeline and shard groups are; `data` follows the number of
    devices. As `next_mesh` it would rather leave ranks idle than break a group, and raises
    LayoutError when not even the smallest mesh is there. Ranks keep their order: torch numbers the
    members of every group by it, so ranks of one node must be neighbours, as launchers do.
    """
    near: list[int] = []
    for node in dict.fromkeys((device.rack, device.node) for device in devices):
        here = [rank for rank, d in enumerate(devices) if (d.rack, d.node) == node]
        near += here[: len(here) - len(here) % layout.tensor]
    if layout.tensor > 1 and near != sorted(near):
        raise LayoutError(
            f"{layout}: ranks of one node are not neighbours ({[d.node for d in devices]}): number "
            "the processes node by node"
        )
    models = len(near) // (layout.tensor * layout.pipeline)
    after = _shrunk(layout, models, least_shard)
    ranks = tuple(sorted(near)[: after.world])
    spare = tuple(rank for rank in range(len(devices)) if rank not in ranks)
    return NextMesh(layout=after, ranks=ranks, spare=spare, rebuilt=0)


def _sorted_out(layout: Layout, lost: set[int]) -> tuple[list[tuple[int, ...]], list[int]]:
    """Whole model groups, and the survivors of broken ones."""
    groups = layout.groups(("pipeline", "tensor"))
    whole = [group for group in groups if not lost & set(group)]
    remains = [r for group in groups if lost & set(group) for r in group if r not in lost]
    return whole, remains


def _shrunk(layout: Layout, models: int, least_shard: int) -> Layout:
    if models < max(1, least_shard):
        raise LayoutError(
            f"there are {models} whole groups of {layout.pipeline * layout.tensor} ranks for "
            f"{layout} and {max(1, least_shard)} are needed; a tensor group is within one node. "
            "Wait for more machines, or plan a new layout"
        )
    if models >= layout.shard:
        return replace(layout, data=models // layout.shard)
    return replace(layout, data=1, shard=models)


def _numbered(layout: Layout, models: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Old ranks in the order of the new ones; each model is in order (stage, tensor)."""
    found = []
    for rank in range(layout.world):
        place = layout.place_of(rank)
        model = models[place.data * layout.shard + place.shard]
        found.append(model[place.pipeline * layout.tensor + place.tensor])
    return tuple(found)
