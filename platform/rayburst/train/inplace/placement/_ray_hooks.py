"""A placement group for each worker of a group. Private parts of one Ray only:
`rayburst.train.versions.TESTED_RAY`.

| touched | why |
|---|---|
| `DefaultPlacementGroupHandle` | what Ray Train's worker group calls a placement |

`tests/unit/train/test_train_inplace_hooks.py` compares it with what was tested.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.train.v2._internal.execution.worker_group.placement_group_handle import (
    DefaultPlacementGroupHandle,
)
from ray.train.v2._internal.util import bundle_to_remote_args
from ray.util.placement_group import (
    PlacementGroup,
    get_placement_group,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rayburst.train.inplace.processes import id_of

__all__ = ["Placement", "Selector", "free_places"]

Selector = dict[str, str] | None
"""Labels that a worker's node must have."""


class Placement(DefaultPlacementGroupHandle):  # type: ignore[misc]
    """One placement group a worker, so that one that departs takes its own along.

    A group with a bundle on a dead node stays "rescheduling": it keeps the head busy and takes the
    next node. `run`: Ray Train's id, in the groups' names, by which `free_places` finds them.
    """

    def __init__(
        self, resources: dict[str, float], selectors: Sequence[Selector], *, run: str
    ) -> None:
        self._resources, self._run = resources, run
        self.groups: list[PlacementGroup] = []
        self._group_of: dict[str, PlacementGroup] = {}
        for selector in selectors:
            self.add(selector)
        super().__init__(self.groups[0])

    def add(self, selector: Selector) -> PlacementGroup:
        """A place for one more worker."""
        labels = [selector] if selector else None
        group = placement_group(
            [self._resources],
            strategy="PACK",
            bundle_label_selector=labels,
            name=f"{_prefix(self._run)}{uuid.uuid4().hex}",
        )
        self.groups.append(group)
        return group

    def start(self, kind: type, group: PlacementGroup, environment: Any) -> ActorHandle:
        """A worker of this `kind` in its place."""
        strategy = PlacementGroupSchedulingStrategy(
            placement_group=group, placement_group_bundle_index=0
        )
        remote = ray.remote(runtime_env=environment, **bundle_to_remote_args(self._resources))
        actor = remote(kind).options(scheduling_strategy=strategy).remote()
        self._group_of[id_of(actor)] = group
        return actor

    def end(self, actor: ActorHandle) -> None:
        """End a worker's process, and give back what it held."""
        ray.kill(actor)
        group = self._group_of.pop(id_of(actor), None)
        if group is not None:
            remove_placement_group(group)
            self.groups.remove(group)

    def wait(self, timeout_seconds: float = 30) -> bool:
        """As the parent."""
        end_s = time.monotonic() + timeout_seconds
        return all(g.wait(max(0.1, end_s - time.monotonic())) for g in self.groups)

    def shutdown(self) -> None:
        """As the parent."""
        for group in self.groups:
            remove_placement_group(group)


def free_places(run: str) -> None:
    """Give back what a controller that has died held: Ray keeps it for as long as the job lives."""
    for known in placement_group_table().values():
        if known["name"].startswith(_prefix(run)) and known["state"] != "REMOVED":
            remove_placement_group(get_placement_group(known["name"]))


def _prefix(run: str) -> str:
    return f"rayburst/{run}/"
