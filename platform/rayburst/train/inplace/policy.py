"""Growth of a group that is rebuilt in place. Runs inside Ray's controller actor.

Until the group has met, and once it no longer rebuilds in place, its parent decides.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from ray.exceptions import RayError

from rayburst.train import _ray_hooks as hooks
from rayburst.train.resizing import GrowthOptions

if TYPE_CHECKING:
    from rayburst.train.inplace._ray_hooks import InPlaceGroups, InPlaceWorkerGroup

__all__ = ["InPlacePolicy"]

_logger = logging.getLogger(__name__)


class InPlacePolicy(hooks.DrainAwarePolicy):
    """Starts joiners, which get ready while the group trains, as soon as that pays.

    Nodes that the planner takes back are left at the end of a step. `rebuild_s`: what a change
    costs until one was measured. `resize_s`: the least time between two looks at growth; where a
    group restarts to grow, its parent's interval counts.
    """

    groups: InPlaceGroups  # the controller's

    def __init__(
        self,
        scaling_config: Any,
        options: GrowthOptions,
        submission_id: str,
        *,
        rebuild_s: float,
        resize_s: float,
    ) -> None:
        super().__init__(scaling_config, options, submission_id)
        self._rebuild_s, self._resize_s = rebuild_s, resize_s

    def make_decision_for_running_worker_group(
        self, worker_group_state: Any, worker_group_status: Any
    ) -> Any:
        group = self.groups.current
        if group is None or not (group.is_formed or group.has_heartbeats):
            return super().make_decision_for_running_worker_group(
                worker_group_state, worker_group_status
            )
        if group.is_formed:  # else its workers load data, or are about to leave
            try:
                self._look_after(group, worker_group_state)
            except (RayError, OSError) as error:  # the head is busy: the next look asks again
                _logger.warning("growth cannot be looked at at the moment: %s", error)
        return hooks.NoopDecision()

    def _stop_s(self) -> float | None:
        """As measured, or what is taken for it before."""
        group = self.groups.current
        if group is None or not group.is_formed:
            return None
        measured_s = self._granted.measured.stop_s
        return self._rebuild_s if measured_s is None else measured_s

    def _look_after(self, group: InPlaceWorkerGroup, worker_group_state: Any) -> None:
        self._give_back = group.let_go
        self._has_run, self._starts_in_a_row = True, 0
        self._maybe_send_resource_request()
        nodes = [worker.metadata.node_id for worker in worker_group_state.workers]
        group.revoked = self._ask_planner({*nodes, *group.joiner_nodes})
        now = time.monotonic()
        if now - self._latest_monitor_time < self._resize_s:
            return
        self._latest_monitor_time = now
        unusable = self._unusable()
        coming = sum(node not in unusable for node in nodes) + group.joining
        possible = min(coming + self._free_places(unusable), self.scaling_config.max_workers)
        if self._pays(coming, possible, in_place_s=self._rebuild_s):
            group.grow(possible - coming)
