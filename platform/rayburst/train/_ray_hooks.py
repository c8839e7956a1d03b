"""Everything in Ray that is private and that training touches. Tested with one Ray only:
`rayburst.train.versions.TESTED_RAY`.

| touched | why |
|---|---|
| `DataParallelTrainer._initialize_and_run_controller` | the only place that takes our policies |
| `ElasticScalingPolicy` and its underscored methods | to leave out nodes that drain or are dead |
| `_AutoscalingCoordinatorActor.get_reserved_resources(recompute)` | it looks every 20 s itself |
| `TrainAutoscalingCoordinatorClient.cancel_resource_request` | of a driver that is lost |
| `WorkerGroupState.shutdown` | a job that waits must not hold the nodes of its last group |
| `ray._private.state.state.get_draining_nodes` | the only view of drains and their deadlines |
| `ray._private.state.available_resources_per_node` | growth needs what is free, not what exists |
| loggers of `ray.train.v2._internal` | leaving is no error; not every report needs a line |
| `ray.experimental.internal_kv` | progress to the driver, "please leave" to the workers, grants |
| environment `RAY_JOB_CONFIG_JSON_ENV_VAR` | a job's driver learns its submission id nowhere else |

`rayburst.train.trainer` imports this module only on the tested version.
`tests/unit/train/test_train_ray_hooks.py` compares signatures and source with what was tested.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import ray
from ray._common.constants import RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_ENV_VAR
from ray.exceptions import RayActorError
from ray.experimental import internal_kv
from ray.train import Result, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.constants import (
    DEFAULT_RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_VALUE,
    get_env_vars_to_propagate,
)
from ray.train.v2._internal.execution import context
from ray.train.v2._internal.execution.scaling_policy import NoopDecision, ResizeDecision
from ray.train.v2._internal.execution.scaling_policy.elastic import ElasticScalingPolicy

from rayburst.train.granted import Granted
from rayburst.train.grants import NAMESPACE, Ask
from rayburst.train.growth_log import GrowthLog
from rayburst.train.inplace.roster import InPlaceOptions
from rayburst.train.liveness import unreachable
from rayburst.train.losing._ray_hooks import LossPolicy
from rayburst.train.losses import LossBudget, LossOptions
from rayburst.train.resizing import GrowthOptions, growth

__all__ = [
    "IN_PLACE_SETTINGS",
    "SETTINGS",
    "DrainAwarePolicy",
    "HookedTorchTrainer",
    "NoopDecision",
    "draining_nodes",
    "fleet_hosts",
]

SETTINGS = {
    # 60 s by default: a group that asks for a node that has just died waits that long
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "5",
    # 2 s by default: half of it passes before the controller sees that the workers left
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # ours reads the same drain state; Ray's would hold the controller until the last rank is gone
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}
"""Ray reads these from the driver's environment when the controller starts; a user's own value
for any of them wins."""

IN_PLACE_SETTINGS = {
    # how soon the controller sees that members wait for a plan
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",
}
"""On top of SETTINGS where groups are rebuilt in place."""

_Reserved = dict[str, dict[str, float]]  # node id -> resource -> amount
_PROBE_TIMEOUT_S = 1.0
_IDLE_PAUSE_S = 0.2


def draining_nodes() -> dict[str, float | None]:
    """Node id -> unix time at which the node goes away, or None where the notice names none."""
    # GlobalStateAccessor: there is no public view of drains (`ray.nodes()` does not show them)
    found = ray._private.state.state.get_draining_nodes()
    return {
        node: deadline_ms / 1000 if deadline_ms else None for node, deadline_ms in found.items()
    }


def kv_put(key: str, value: bytes) -> None:
    """Store `value` at `key` in the head's key-value store: small, not durable."""
    internal_kv._internal_kv_put(key.encode(), value, namespace=NAMESPACE)


def kv_get(key: str) -> bytes | None:
    """The value at `key`, or None."""
    value: bytes | None = internal_kv._internal_kv_get(key.encode(), namespace=NAMESPACE)
    return value


def kv_delete(key: str) -> None:
    """Remove `key`; one that is not there is fine."""
    internal_kv._internal_kv_del(key.encode(), namespace=NAMESPACE)


def submission_id(environ: Mapping[str, str]) -> str:
    """The id under which this driver was submitted as a Ray job; "" for any other driver."""
    job = json.loads(environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}")
    return str((job.get("metadata") or {}).get("job_submission_id", ""))


def hush_reports() -> None:
    """Keep this worker from telling every report at INFO, past Ray Train's own log level."""
    # `context.py` names its logger by its file, outside the "ray" tree that LoggingConfig sets
    logging.getLogger(context.__file__).setLevel(logging.WARNING)


def hush_leaving() -> None:
    """Keep this worker from logging its planned departure as an error with a traceback."""
    # `construct_user_exception_with_traceback` logs whatever ends a training function
    logging.getLogger("ray.train.v2._internal.util").setLevel(logging.CRITICAL)


class HookedTorchTrainer(TorchTrainer):  # type: ignore[misc]
    """TorchTrainer that gives the controller our scaling and failure policies."""

    def __init__(
        self,
        train_fn: Callable[..., Any],
        *,
        growth_options: GrowthOptions,
        loss_options: LossOptions,
        in_place: InPlaceOptions | None = None,
        in_place_resize_s: float = 5.0,
        **options: Any,
    ) -> None:
        super().__init__(train_fn, **options)
        self._growth_options = growth_options
        self._loss_options = loss_options
        self._in_place = in_place
        self._in_place_resize_s = in_place_resize_s

    def _initialize_and_run_controller(self, **options: Any) -> Result:
        # the one place between `fit` and the controller actor; both policies are arguments here
        budget = LossBudget(self._loss_options)
        options["failure_policy"] = LossPolicy(self.run_config.failure_config, budget)
        if not self.scaling_config.elasticity_enabled:
            return super()._initialize_and_run_controller(**options)
        job = submission_id(os.environ)
        if self._in_place is None:
            options["scaling_policy"] = DrainAwarePolicy(
                self.scaling_config, self._growth_options, job
            )
            return super()._initialize_and_run_controller(**options)
        from rayburst.train.inplace.policy import InPlacePolicy

        options["scaling_policy"] = InPlacePolicy(
            self.scaling_config,
            self._growth_options,
            job,
            rebuild_s=self._in_place.rebuild_s,
            resize_s=self._in_place_resize_s,
        )
        return self._run_in_place(self._in_place, budget, options)

    def _run_in_place(
        self, in_place: InPlaceOptions, budget: LossBudget, options: dict[str, Any]
    ) -> Result:
        """As the parent's method, but with our controller, and another one when it dies."""
        from rayburst.train.inplace._ray_hooks import InPlaceController, InPlaceGroups
        from rayburst.train.inplace.placement._ray_hooks import free_places

        timeout_s = self.backend_config.timeout_s
        groups = InPlaceGroups(options=in_place, budget=budget, timeout_s=timeout_s)
        environment = get_env_vars_to_propagate()
        environment.setdefault(
            RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_ENV_VAR,
            DEFAULT_RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_VALUE,
        )
        here = {ray._raylet.RAY_NODE_ID_KEY: ray.get_runtime_context().get_node_id()}
        make = ray.remote(num_cpus=0, label_selector=here, runtime_env={"env_vars": environment})(
            InPlaceController
        )
        while True:
            controller = make.remote(groups=groups, **options)
            if threading.current_thread() is threading.main_thread():
                self._register_sigint_handler(controller)
            try:
                ray.get(controller.run.remote())
                return ray.get(controller.get_result.remote())
            except RayActorError:
                # its process died, and its workers with it: from the newest checkpoint
                if not budget.spend(time.monotonic()):
                    raise
                free_places(options["train_run_context"].run_id)


class DrainAwarePolicy(ElasticScalingPolicy):  # type: ignore[misc]
    """Ray's elastic policy, but with the nodes that are there and will stay.

    Stock counts draining and dead nodes until the head has noticed and its coordinator has looked
    again, kills a running group to shrink or to grow it, and knows nothing of the work left. Here a
    running group is never made smaller (its ranks leave by themselves), and to grow it is asked to
    save and leave; it is restarted without having saved only when it has not left
    `leave_within_s` later. Runs inside Ray's controller actor.
    """

    # the parent's; named here because Ray ships no types
    _requester_id: str
    _coordinator_client: Any
    _latest_monitor_time: float
    _latest_reserved_resources_query_time: float
    _latest_reserved_resources: _Reserved | None

    def __init__(
        self, scaling_config: ScalingConfig, options: GrowthOptions, submission_id: str = ""
    ) -> None:
        super().__init__(scaling_config)
        self._options = options
        self._granted = Granted(submission_id, kv_get=kv_get, kv_put=kv_put, clock=time.time)
        self._first_asked_s: float | None = None
        self._has_run = False
        self._give_back: Callable[[], None] | None = None  # what the last group holds
        self._starts_in_a_row = 0
        self._asked_to_leave_s: float | None = None
        self._resize_key = ""
        self._progress_key = ""
        self._growths = GrowthLog()

    def after_controller_start(self, train_run_context: Any) -> None:
        config = train_run_context.run_config
        run = config.name
        if config.storage_path:
            self._growths = GrowthLog(f"{str(config.storage_path).rstrip('/')}/{run}")
        self._resize_key, self._progress_key = resize_key(run), progress_key(run)
        super().after_controller_start(train_run_context)
        self._take_over(f"{run}/requester", str(config.storage_path))

    def _take_over(self, key: str, storage: str) -> None:
        """Free what a lost driver of this run has reserved: it would keep the nodes for 180 s."""
        requester, where = json.loads(kv_get(key) or b'["", ""]')
        if where == storage and requester != self._requester_id:
            type(self._coordinator_client)(requester).cancel_resource_request()
        kv_put(key, json.dumps([self._requester_id, storage]).encode())

    def make_decision_for_non_running_worker_group(self) -> Any:
        self._ask_planner(set())
        decision = super().make_decision_for_non_running_worker_group()
        if isinstance(decision, ResizeDecision) and not self._wait_for_more(decision.num_workers):
            # a start that failed since the last step ran: something else holds a node's CPUs
            least = self.scaling_config.min_workers
            decision.num_workers = max(least, decision.num_workers - self._starts_in_a_row)
            self._starts_in_a_row += 1
            return decision
        self._let_go()
        time.sleep(_IDLE_PAUSE_S)  # the controller asks again at once, without a pause of its own
        return NoopDecision()

    def _let_go(self) -> None:
        """While a job waits for its grant, free the nodes that its last group ran on.

        Ray's controller holds them until the next start, though nothing runs there: whoever the
        planner gave them to would wait for ever. It then shuts the group down again, as one that
        has crashed.
        """
        give_back, self._give_back = self._give_back, None
        if give_back is not None and self._granted.has_planner:
            give_back()

    def make_decision_for_running_worker_group(
        self, worker_group_state: Any, worker_group_status: Any
    ) -> Any:
        self._give_back = lambda: worker_group_state.shutdown()
        self._has_run, self._starts_in_a_row = True, 0
        self._maybe_send_resource_request()
        used = {worker.metadata.node_id for worker in worker_group_state.workers}
        revoked = self._ask_planner(used)
        now = time.monotonic()
        if self._asked_to_leave_s is not None:
            if now - self._asked_to_leave_s < self._options.leave_within_s:
                return NoopDecision()
            self._asked_to_leave_s = None  # it did not answer: resize as stock Ray does
            return self._get_resize_decision(self._size_possible(worker_group_state))
        if revoked:
            self._asked_to_leave_s = now
            kv_put(self._resize_key, f"{len(used)} -> {len(used) - len(revoked)}".encode())
            return NoopDecision()
        settled = now - max(worker_group_state.start_time, self._latest_monitor_time)
        if settled < self.scaling_config.elastic_resize_monitor_interval_s:
            return NoopDecision()
        self._latest_monitor_time = now
        size = worker_group_state.num_workers
        possible = self._size_possible(worker_group_state)
        if self._pays(size, possible):
            self._asked_to_leave_s = now
            kv_put(self._resize_key, f"{size} -> {possible}".encode())
        return NoopDecision()

    def _pays(self, size: int, possible: int, in_place_s: float | None = None) -> bool:
        """Whether to grow; told in the run log with its numbers."""
        found = growth(
            size,
            possible,
            kv_get(self._progress_key),
            self._options,
            restart_s=self._granted.measured.changeover_s,
            in_place_s=in_place_s,
        )
        self._growths.tell(found)
        return found.pays

    def on_controller_start_worker_group(
        self, *, scaling_config: ScalingConfig, num_workers: int
    ) -> dict[str, str] | None:
        """Forget an old request to leave, and keep the group off nodes that will not stay."""
        self._asked_to_leave_s = None
        self._granted.measured.started(time.time())
        kv_delete(self._resize_key)
        return self.avoiding()

    def avoiding(self) -> dict[str, str] | None:
        """Labels that keep new workers on nodes that stay and are granted; None: on any node."""
        nodes = fleet_hosts(ray.nodes())
        forbidden = self._granted.outside(nodes)
        unusable = sorted(self._unusable() - forbidden)
        if isinstance(self.scaling_config.label_selector, list):
            return None
        selector = dict(self.scaling_config.label_selector or {})
        if unusable:
            # the head may still hold a dead node for alive and would place a worker there
            selector[ray._raylet.RAY_NODE_ID_KEY] = f"!in({','.join(unusable)})"
        if forbidden:
            allowed = sorted(host for node, host in nodes.items() if node not in forbidden)
            selector["rayburst.io/host"] = f"in({','.join(allowed)})"
        return selector if unusable or forbidden else None

    def _count_possible_workers(self, reserved_resources: _Reserved) -> int:
        unusable = self._unusable()
        usable = {node: r for node, r in reserved_resources.items() if node not in unusable}
        count: int = super()._count_possible_workers(usable)
        return count

    def _get_reserved_resources(self) -> _Reserved | None:
        nodes = ray.nodes()
        granted = self._granted.inside(fleet_hosts(nodes))
        if granted is not None:
            # the coordinator gives whole nodes to whichever run asked first, the planner by turn
            return {n["NodeID"]: n["Resources"] for n in nodes if n["NodeID"] in granted}
        # As the parent does, but with a fresh look at the cluster: the coordinator looks only every
        # 20 s by itself, so a new node would wait and a dead one would still count.
        now = time.monotonic()
        if (
            now - self._latest_reserved_resources_query_time
            < self.GET_RESERVED_RESOURCES_INTERVAL_S
        ):
            return self._latest_reserved_resources
        actor = self._autoscaling_coordinator
        found: _Reserved | None = None
        try:
            ask = actor.get_reserved_resources.remote(self._requester_id, recompute=True)
            found = ray.get(ask, timeout=5)
        except (ray.exceptions.RayError, TimeoutError):
            # the coordinator's node went away: Ray makes a new one when it is next looked up
            self._coordinator_client.__dict__.pop("_autoscaling_coordinator", None)
            self._coordinator_client._latest_autoscaling_request_time = float("-inf")
        self._latest_reserved_resources_query_time = time.monotonic()
        self._latest_reserved_resources = found
        return found

    def _wait_for_more(self, size: int) -> bool:
        """Whether the first start is worth a moment's wait: the full size may be on its way."""
        now = time.monotonic()
        self._first_asked_s = self._first_asked_s or now
        patient = now - self._first_asked_s < self._options.start_patience_s
        return not self._has_run and size < self.scaling_config.max_workers and patient

    def _size_possible(self, worker_group_state: Any) -> int:
        """The size the group could have: what it holds plus what is free on nodes that stay."""
        unusable = self._unusable()
        kept = sum(w.metadata.node_id not in unusable for w in worker_group_state.workers)
        if kept < worker_group_state.num_workers:
            return int(worker_group_state.num_workers)  # its ranks are about to leave anyway
        reserved = self._get_reserved_resources()
        allowed = self._count_possible_workers(reserved) if reserved else kept
        extra = self._free_places(unusable)
        return int(max(kept, min(allowed, kept + extra, self.scaling_config.max_workers)))

    def _free_places(self, unusable: set[str]) -> int:
        """How many more workers the free part of usable nodes can take."""
        free = ray._private.state.available_resources_per_node()
        needed = {k: v for k, v in self.scaling_config._resources_per_worker_not_none.items() if v}
        return sum(
            min((int(r.get(name, 0.0) // amount) for name, amount in needed.items()), default=0)
            for node, r in free.items()
            if node not in unusable
        )

    def _unusable(self) -> set[str]:
        """Nodes that drain, or whose raylet does not answer though the head calls it alive."""
        alive = {
            node["NodeID"]: (node["NodeManagerAddress"], int(node["NodeManagerPort"]))
            for node in ray.nodes()
            if node["Alive"]
        }
        forbidden = self._granted.outside(fleet_hosts(ray.nodes()))
        return (
            (set(draining_nodes()) & set(alive)) | unreachable(alive, _PROBE_TIMEOUT_S) | forbidden
        )

    def _ask_planner(self, used: set[str]) -> set[str]:
        """Tell the planner where the run stands; the nodes it must leave since its grant shrank."""
        hosts = fleet_hosts(ray.nodes())
        config = self.scaling_config
        measured = self._granted.measured
        measured.hear(kv_get(self._progress_key))
        self._granted.tell(
            Ask(
                t=time.time(),
                run=self._progress_key.rpartition("/")[0],
                least=config.min_workers,
                most=config.max_workers,
                resources={k: v for k, v in config._resources_per_worker_not_none.items() if v},
                hosts=tuple(sorted(hosts[node] for node in used if hosts.get(node))),
                started_at=measured.started_at,
                steps_left=measured.steps_left,
                speeds=measured.speeds,
                changeover_s=measured.changeover_s,
                checkpoint_s=measured.checkpoint_s,
                stop_s=self._stop_s(),
            )
        )
        leaving = used & self._granted.outside(hosts) - set(draining_nodes())
        return leaving

    def _stop_s(self) -> float | None:
        """How long a change of members in place stops the group; None where it restarts."""
        return None


def fleet_hosts(nodes: list[dict[str, Any]]) -> dict[str, str]:
    """Node id -> host of the fleet; nodes that are no host of a fleet are left out."""
    labels = {node["NodeID"]: node.get("Labels") or {} for node in nodes if node["Alive"]}
    return {
        n: found["rayburst.io/host"] for n, found in labels.items() if "rayburst.io/host" in found
    }


def resize_key(run: str) -> str:
    """Where the controller asks a run's workers to save and leave."""
    return f"{run}/resize"


def progress_key(run: str) -> str:
    """Where rank 0 tells how far a run is: JSON, see `rayburst.train.progress`."""
    return f"{run}/progress"
