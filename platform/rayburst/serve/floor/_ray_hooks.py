"""Serve's controller with floors: where each new replica may run, and who goes first. Ray 2.60.

| touched | for |
|---|---|
| `deployment_state.DeploymentState` | the class that Serve's controller makes one of for each |
| `DeploymentState._add_upscale_replicas` | what each new replica asks Ray for |
| `DeploymentState.scale_deployment_replicas` | a replica that waits for the floor in vain |
| `DeploymentReplica.resource_requirements` | what `serve status` says of one that waits |
| `default_impl.DeploymentScheduler` | the class that chooses whom a smaller deployment stops |
| `DeploymentScheduler._get_replicas_to_stop` | the floor's go last |
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from ray.serve._private import default_impl, deployment_state
from ray.serve._private.common import ReplicaState
from ray.serve._private.deployment_scheduler import DeploymentScheduler

from rayburst.serve.floor import MARKET, floor_of, is_off_spot, placement

_log = logging.getLogger("ray.serve")
_Scheduler: Any = DeploymentScheduler
_State: Any = deployment_state.DeploymentState
_STANDING = [
    ReplicaState.RUNNING,
    ReplicaState.UPDATING,
    ReplicaState.STARTING,
    ReplicaState.RECOVERING,
]
_WAITS = f" on a node with the label {MARKET}=on-demand (it is of the floor, which is never spot)"


def use_floors() -> None:
    """Call it in Serve's controller before it makes its deployments: it looks both names up."""
    default_impl.DeploymentScheduler = FloorScheduler
    deployment_state.DeploymentState = FloorState


class FloorScheduler(_Scheduler):  # type: ignore[misc]
    """Serve's scheduler; a smaller deployment gives up its floor last."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.waiting: set[Any] = set()  # replicas that may only run off spot and do not run yet

    def on_replica_running(self, replica_id: Any, node_id: str) -> None:
        self.waiting.discard(replica_id)
        super().on_replica_running(replica_id, node_id)

    def on_replica_stopping(self, replica_id: Any) -> None:
        self.waiting.discard(replica_id)
        super().on_replica_stopping(replica_id)

    def _get_replicas_to_stop(
        self, deployment_id: Any, max_num_to_stop: int, **gang: Any
    ) -> set[Any]:
        # Serve stops what does not run yet first, the floor's too, and then whom the
        # deployment's selector does not fit: that is those on spot.
        if not floor_of(self._deployments[deployment_id].label_selector):
            return set(super()._get_replicas_to_stop(deployment_id, max_num_to_stop, **gang))
        running = self._running_replicas[deployment_id]
        labels = self._cluster_node_info_cache.get_node_labels
        floor = self.waiting | {r for r, node in running.items() if is_off_spot(labels(node))}
        # where a replica runs that Serve has just found again is not known yet
        floor |= self._recovering_replicas[deployment_id]
        stopped = self._stop_among(deployment_id, max_num_to_stop, lambda r: r not in floor)
        missing = max_num_to_stop - len(stopped)
        if missing:
            stopped |= self._stop_among(deployment_id, missing, lambda r: r in floor)
        return stopped

    def _stop_among(
        self, deployment_id: Any, count: int, may_stop: Callable[[Any], bool]
    ) -> set[Any]:
        """Serve's own choice, among some."""
        books = (self._pending_replicas, self._launching_replicas, self._running_replicas)
        found_again = self._recovering_replicas[deployment_id]
        whole = [book[deployment_id] for book in books]
        try:
            self._recovering_replicas[deployment_id] = set(filter(may_stop, found_again))
            for book in books:
                listed = book[deployment_id].items()
                book[deployment_id] = {r: what for r, what in listed if may_stop(r)}
            return set(super()._get_replicas_to_stop(deployment_id, count))
        finally:
            self._recovering_replicas[deployment_id] = found_again
            for book, before in zip(books, whole, strict=True):
                book[deployment_id] = before


class FloorState(_State):  # type: ignore[misc]
    """Serve's state of one deployment, whose replicas need not all ask for the same nodes."""

    def scale_deployment_replicas(self, *args: Any, **kwargs: Any) -> Any:
        asked = self._asked()
        if self._in_transition and floor_of(asked):
            self._let_go(floor_of(asked))
        return super().scale_deployment_replicas(*args, **kwargs)

    def _add_upscale_replicas(self, *args: Any, **kwargs: Any) -> list[Any]:
        asked = self._asked()
        missing = floor_of(asked) and floor_of(asked) - len(self._holding())
        requests: list[Any] = super()._add_upscale_replicas(*args, **kwargs)
        if not floor_of(asked):
            return requests
        for number, request in enumerate(requests):
            is_floors = number < missing
            request.actor_options.update(placement(asked, off_spot=is_floors))
            if is_floors:
                self._deployment_scheduler.waiting.add(request.replica_id)
                _say_where(self._replicas.get_by_id(request.replica_id))
        nodes = self._cluster_node_info_cache
        if missing > 0 and not any(
            is_off_spot(nodes.get_node_labels(node)) for node in nodes.get_active_node_ids()
        ):
            _log.warning(
                "%s waits for a node off spot: no node that may take replicas has the label "
                "%s=on-demand, which its floor needs",
                self._id,
                MARKET,
            )
        return requests

    def _asked(self) -> dict[str, str]:
        """The deployment's own label selector."""
        info = self._target_state.info
        options = info.replica_config.ray_actor_options if info is not None else {}
        return dict(options.get("label_selector") or {})

    def _holding(self) -> list[Any]:
        """The replicas that stand off spot, or will."""
        # A surge starts the new ones first and stops the old ones without another start, so old
        # ones hold nothing then. Otherwise each one that is stopped has a successor.
        only = self._target_state.version if self._surge_rollout_in_progress() else None
        standing = self._replicas.get(_STANDING)
        if only is not None:
            standing = [r for r in standing if r.version == only]
        return [r for r in standing if self._is_off_spot(r)]

    def _is_off_spot(self, replica: Any) -> bool:
        if replica.actor_node_id is None:
            return replica.replica_id in self._deployment_scheduler.waiting
        labels = self._cluster_node_info_cache.get_node_labels(replica.actor_node_id)
        return is_off_spot(labels)

    def _let_go(self, floor: int) -> None:
        """Stops what waits off spot in vain, as others came to stand there; Serve starts anew."""
        holding = self._holding()
        in_vain = [r for r in holding if r.actor_node_id is None][: max(0, len(holding) - floor)]
        for replica in self._replicas.remove([r.replica_id for r in in_vain]):
            self._stop_replica(replica, graceful_stop=False)


def _say_where(replica: Any) -> None:
    tell = replica.resource_requirements

    def resource_requirements() -> tuple[str, str]:
        required, available = tell()
        return required + _WAITS, available

    replica.resource_requirements = resource_requirements
