"""The process groups of a layout, over all processes or over some of them.

    mesh = Mesh(layout, device, plan)                  # all processes
    mesh = Mesh(layout, device, plan, ranks=(0, 2))    # rank 2 stands at place 1

Making one is collective over all processes of the default group, those that are left out too:
these have no `place`, and take part in nothing more.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from rayburst.errors import LayoutError
from rayburst.train.parallel.gradients import Sharing
from rayburst.train.parallel.layout import DIMENSIONS, Layout
from rayburst.train.parallel.plan import Plan

__all__ = ["Mesh"]


class Mesh:
    """See the module's head.

    place: this process's number in the layout; None: it is left out. devices: None for a layout of
    one process. sharing: who holds one copy of the model with this rank. ends: the first and last
    stage of this rank's pipeline, where they share a weight.
    """

    def __init__(
        self,
        layout: Layout,
        device: torch.device,
        plan: Plan,
        *,
        ranks: Sequence[int] | None = None,
    ) -> None:
        world = dist.get_world_size() if dist.is_initialized() else 1
        self.layout = layout
        self.ranks = tuple(range(world)) if ranks is None else tuple(ranks)
        self._check(world)
        mine = dist.get_rank() if world > 1 else 0
        self.place = self.ranks.index(mine) if mine in self.ranks else None
        self.has_spares = world > layout.world
        self.devices: DeviceMesh | None = None
        self.group = self.ends = None
        if layout.world > 1:
            placed = torch.tensor(self.ranks).view(layout.shape)
            self.devices = DeviceMesh(device.type, placed, mesh_dim_names=DIMENSIONS)
            self.group = dist.new_group(list(self.ranks)) if self.has_spares else dist.group.WORLD
        self.sharing = Sharing(
            group=self._mine(layout.groups(("pipeline", "shard", "tensor")))
            if layout.world > layout.data
            else None,
            shard=layout.shard,
            tensor=layout.tensor,
        )
        if plan.tied and layout.pipeline > 1:
            columns = layout.groups(("pipeline",))
            self.ends = self._mine([(column[0], column[-1]) for column in columns])

    def _check(self, world: int) -> None:
        layout, ranks = self.layout, self.ranks
        if len(ranks) != layout.world:
            raise LayoutError(
                f"layout {layout} is for {layout.world} processes and there are {len(ranks)}. Give "
                f"one whose counts multiply to {len(ranks)}, for example Layout(data={len(ranks)})"
            )
        if list(ranks) != sorted(set(ranks)) or not set(ranks) <= set(range(world)):
            # torch numbers the members of a group by rank, whatever order it is told
            raise LayoutError(f"ranks={ranks}: give different ones below {world}, in their order")

    def _mine(self, groups: Sequence[Sequence[int]]) -> dist.ProcessGroup | None:
        """Of groups of places the one with this process. All processes make all groups."""
        mine = None
        for places in groups:
            made = dist.new_group([self.ranks[place] for place in places])
            if self.place in places:
                mine = made
        return mine
