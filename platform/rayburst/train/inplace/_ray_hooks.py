"""Rebuilding in place inside Ray Train's controller. Private parts of one Ray only:
`rayburst.train.versions.TESTED_RAY`.

| touched | why |
|---|---|
| `TrainController.worker_group_cls` | the group that is rebuilt is made by the controller |
| `WorkerGroup` and its underscored methods | its members change while it runs |
| `ReportCallbackHandler.after_worker_group_start` | the queues of reports have the group's size |
| `DatasetsCallback._dataset_shard_provider` | a joiner shares it: its own would cost an actor |
| `SynchronizationActor.reset` | frees ranks that wait in `report()` for one that is lost |
| `TrainContext.distributed_context` | rank and world of a worker, as `ray.train` tells them |
| `_set_torch_distributed_env_vars` | the same for what reads the environment |
| `DataParallelTrainer._initialize_and_run_controller` | makes our controller |

`tests/unit/train/test_train_inplace_hooks.py` compares them with what was tested.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Collection
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import (
    ActorDiedError,
    GetTimeoutError,
    OutOfMemoryError,
    RayActorError,
    RayError,
)
from ray.train.torch.config import _set_torch_distributed_env_vars
from ray.train.v2._internal.callbacks import DatasetsCallback, WorkingDirectorySetupCallback
from ray.train.v2._internal.exceptions import (
    WorkerGroupStartupFailedError,
    WorkerHealthCheckFailedError,
)
from ray.train.v2._internal.execution.checkpoint.report_handler import ReportCallbackHandler
from ray.train.v2._internal.execution.context import DistributedContext, get_train_context
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.worker_group import (
    Worker,
    WorkerGroup,
    WorkerGroupPollStatus,
)
from ray.train.v2._internal.execution.worker_group.execution_group import ReplicaGroup
from ray.train.v2._internal.execution.worker_group.poll import WorkerStatus
from ray.util.placement_group import PlacementGroup

from rayburst.train import _ray_hooks as hooks
from rayburst.train.inplace.introduction import Introduction, introduce
from rayburst.train.inplace.messages import Look, Plan, Seat
from rayburst.train.inplace.placement._ray_hooks import Placement, Selector
from rayburst.train.inplace.processes import Departing, Joiner, id_of, warm
from rayburst.train.inplace.rendezvous import Rendezvous
from rayburst.train.inplace.roster import Decision, InPlaceOptions, Local
from rayburst.train.inplace.steering import Member, Moment, Steering
from rayburst.train.liveness import unreachable
from rayburst.train.losses import LossBudget

__all__ = ["InPlaceController", "InPlaceGroups", "InPlaceWorkerGroup", "adopt"]

_ANSWER_S = 5.0
_PROBE_TIMEOUT_S = 1.0
_DEPART_S = 60.0
_logger = logging.getLogger(__name__)


def adopt(plan: Plan, seat: Seat) -> None:
    """In a worker: let Ray Train tell the place that `plan` gives."""
    get_train_context().distributed_context = DistributedContext(
        world_rank=seat.rank,
        world_size=seat.world,
        local_rank=plan.local_rank,
        local_world_size=plan.local_world,
        node_rank=plan.node_rank,
    )
    _set_torch_distributed_env_vars()


class InPlaceController(TrainController):  # type: ignore[misc]
    """Ray's controller, but what it starts is rebuilt in place."""

    def __init__(self, *, groups: InPlaceGroups, **options: Any) -> None:
        # before the parent's, which tells the policies that it starts
        groups.selector = options["scaling_policy"].avoiding
        options["scaling_policy"].groups = groups
        groups.budget = options["failure_policy"].budget  # both tiers give up together
        self.worker_group_cls = groups
        super().__init__(**options)


class InPlaceGroups:
    """Makes worker groups for the controller. `selector`: labels that keep new workers off nodes
    that are no use. `budget`: of members that are lost.
    """

    def __init__(
        self,
        *,
        options: InPlaceOptions,
        budget: LossBudget,
        timeout_s: float,
    ) -> None:
        self.options = options
        self.budget = budget
        self.timeout_s = timeout_s
        self.selector: Callable[[], Selector] = lambda: None
        self.current: InPlaceWorkerGroup | None = None

    def create(
        self, train_run_context: Any, worker_group_context: Any, callbacks: Any = None
    ) -> InPlaceWorkerGroup:
        """As `WorkerGroup.create`."""
        group = InPlaceWorkerGroup(train_run_context, worker_group_context, callbacks)
        group.settings = self
        try:
            group._start()
        except RayError:
            if group.has_started():  # a worker was lost while the function was sent to it
                group.let_go()
            raise
        self.current = group
        return group


class InPlaceWorkerGroup(WorkerGroup):  # type: ignore[misc]
    """Ray's group of workers, whose members change while it runs. `steering` decides."""

    settings: InPlaceGroups
    _worker_group_state: Any  # the parent's; Ray ships no types

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._rendezvous: Any = None
        self._joiners: list[Joiner] = []
        self._departing: list[Departing] = []
        self._placement: Placement
        self._hosts: dict[str, str] = {}  # node -> its name
        self.revoked: set[str] = set()  # nodes that the planner takes back; the policy sets it

    @property
    def is_formed(self) -> bool:
        """Whether its members take part, and changes are made here."""
        return self._steering.is_formed

    @property
    def has_heartbeats(self) -> bool:
        """Whether its workers take part, and not just run an ordinary training function."""
        return self._steering.has_heartbeats

    @property
    def joining(self) -> int:
        """How many workers are getting ready."""
        return len(self._joiners)

    @property
    def joiner_nodes(self) -> list[str]:
        """Where they do."""
        return [joiner.node for joiner in self._joiners if joiner.node]

    # -- start and end ---------------------------------------------------------------------------

    def _start_impl(self, worker_group_state_builder: Any) -> None:
        scaling = self._train_run_context.scaling_config
        self._steering = Steering(
            tell=self._tell,
            unreachable=lambda addresses: unreachable(addresses, _PROBE_TIMEOUT_S),
            options=self.settings.options,
            budget=self.settings.budget,
            least=scaling.min_workers,
            most=scaling.max_workers,
        )
        here = {ray._raylet.RAY_NODE_ID_KEY: ray.get_runtime_context().get_node_id()}
        self._rendezvous = (
            ray.remote(num_cpus=0, max_concurrency=10_000)(Rendezvous)
            .options(label_selector=here, max_restarts=-1, max_task_retries=-1)
            .remote()
        )
        super()._start_impl(worker_group_state_builder)
        self._worker_rank_to_replica_group_rank = None  # replica groups are torchft's

    def shutdown(self) -> None:
        self._end_helpers()
        super().shutdown()

    def let_go(self) -> None:
        """Give back what a group that has failed still holds; it is shut down later."""
        self._end_helpers()
        if self._worker_group_state is not None:
            self._worker_group_state.shutdown()

    def abort(self) -> None:
        self._end_helpers()
        super().abort()

    def _end_helpers(self) -> None:
        for joiner in self._joiners:
            self._placement.end(joiner.actor)
        for departing in self._departing:
            self._placement.end(departing.actor)
        self._joiners, self._departing = [], []
        ray.kill(self._rendezvous)

    # -- workers and where they are placed -------------------------------------------------------

    def _create_placement_group(self, scaling_config: Any, worker_group_context: Any) -> Placement:
        context = worker_group_context
        selectors = context.label_selector or [None] * context.num_workers
        run = self._train_run_context.run_id
        self._placement = Placement(context.resources_per_worker, selectors, run=run)
        return self._placement

    def _create_workers(
        self,
        num_workers: int,
        placement_group: PlacementGroup,
        resources_per_worker: dict[str, float],
        **options: Any,
    ) -> list[Worker]:
        actors = [self._actor(group) for group in self._placement.groups]
        try:
            known = ray.get([actor.get_metadata.remote() for actor in actors])
        except RayActorError as error:  # else Ray Train takes it for a defect, and ends the run
            raise WorkerGroupStartupFailedError("a worker was lost at its start") from error
        workers = [
            Worker(actor, metadata, resources_per_worker, placement_group_bundle_index=0)
            for actor, metadata in zip(actors, known, strict=True)
        ]
        return list(WorkerGroup._assign_worker_ranks(workers))

    def _actor(self, group: PlacementGroup) -> ActorHandle:
        environment = self._get_worker_runtime_env(
            custom_runtime_env=self._train_run_context.run_config.worker_runtime_env
        )
        return self._placement.start(self._worker_cls, group, environment)

    def _init_train_context(self, workers: list[Worker], sync_actor: ActorHandle) -> None:
        super()._init_train_context(workers, sync_actor)
        self._introduce(workers)

    def _introduce(self, workers: list[Worker]) -> None:
        ray.get(
            [
                worker.execute_async(
                    introduce,
                    Introduction(
                        rendezvous=self._rendezvous,
                        member=id_of(worker.actor),
                        timeout_s=self.settings.timeout_s,
                    ),
                )
                for worker in workers
            ]
        )

    # -- growth ----------------------------------------------------------------------------------

    def grow(self, count: int) -> None:
        """Start `count` more workers; they join at the end of a step, once they are ready."""
        for _ in range(count):
            group = self._placement.add(self.settings.selector())
            joiner = Joiner(self._actor(group), time.monotonic())
            self._joiners.append(joiner)
            threading.Thread(target=self._prepare, args=[joiner], daemon=True).start()

    def _prepare(self, joiner: Joiner) -> None:
        """In a thread: bring a joiner to the start of the training function."""
        try:
            metadata = ray.get(joiner.actor.get_metadata.remote())
            joiner.node = metadata.node_id
            ray.get(joiner.actor.execute.remote(warm))
            resources = self._worker_group_context.resources_per_worker
            worker = Worker(joiner.actor, metadata, resources, placement_group_bundle_index=0)
            size = len(self.get_workers())
            worker.distributed_context = DistributedContext(
                world_rank=size,
                world_size=size + 1,
                local_rank=0,
                local_world_size=1,
                node_rank=size,
            )
            self._init_joiner(worker)
            joiner.worker = worker
            ray.get(worker.actor.run_train_fn.remote(self._worker_group_context.train_fn_ref))
        except RayError as error:
            joiner.error = error

    def _init_joiner(self, worker: Worker) -> None:
        arguments: dict[str, list[Any]] = {}
        for callback in self._execution_group_callbacks:
            if isinstance(callback, DatasetsCallback):
                arguments["dataset_shard_provider"] = [callback._dataset_shard_provider]
            else:
                arguments |= callback.before_init_train_context([worker])
        sync_actor = self._worker_group_state.sync_actor
        self._init_train_context_on_workers([worker], sync_actor, arguments)
        self._introduce([worker])
        for callback in self._callbacks:
            if isinstance(callback, WorkingDirectorySetupCallback):
                callback.after_execution_group_start(ReplicaGroup([worker], worker.resources))

    def _ready_joiners(self, going: Collection[str]) -> list[Worker]:
        """Workers that may join; those that cannot any more are ended. `going`: nodes."""
        now = time.monotonic()
        for joiner in list(self._joiners):
            why = str(joiner.error or "")
            if now - joiner.began_s > self.settings.options.join_within_s:
                why = why or "it is late"
            if joiner.node in going:
                why = "its node is to be taken away"
            if why:
                _logger.warning("a worker that was to join is given up: %s", why)
                self._joiners.remove(joiner)
                self._placement.end(joiner.actor)
        return [joiner.worker for joiner in self._joiners if joiner.worker is not None]

    # -- the controller's look -------------------------------------------------------------------

    def poll_status(self, timeout: float | None = None) -> WorkerGroupPollStatus:
        """As the parent, with what is done in place taken out of the statuses."""
        self._assert_active()
        look = self._look()  # first: who has arrived has told all its reports
        statuses = self._poll_workers_and_collect_errors(timeout)
        self._end_departed()
        if not self._is_mistake(statuses):
            statuses = self._steered(look, statuses)
        status = WorkerGroupPollStatus(
            worker_statuses=dict(enumerate(statuses)), worker_rank_to_replica_group_rank=None
        )
        for callback in self._callbacks:
            callback.after_worker_group_poll_status(status)
        self._latest_poll_status = status
        return status

    def _look(self) -> Look | None:
        try:
            look: Look = ray.get(self._rendezvous.look.remote(), timeout=_ANSWER_S)
        except (RayError, GetTimeoutError):
            return None  # Ray starts it again
        return look

    def _steered(self, look: Look | None, statuses: list[WorkerStatus]) -> list[WorkerStatus]:
        """As `_steer`; what nobody thought of must not end the run, as Ray Train would."""
        try:
            return self._steer(look, statuses)
        except (RayError, OSError) as error:  # the head is busy: the next look asks again
            _logger.warning("the cluster cannot be asked at the moment: %s", error)
        except Exception as error:
            _logger.exception("an error in the steering of the group")
            why = f"an error in its steering: {type(error).__name__}: {error}"
            self._steering.hand_over(why, saves=True)
        return self._masked(statuses)

    def _steer(self, look: Look | None, statuses: list[WorkerStatus]) -> list[WorkerStatus]:
        # what the planner takes back is left at once, whatever the node's own deadline
        draining = hooks.draining_nodes() | dict.fromkeys(self.revoked)
        moment = Moment(
            look=look,
            members=[
                self._member(worker, status)
                for worker, status in zip(self.get_workers(), statuses, strict=True)
            ],
            joiners=[self._member(worker) for worker in self._ready_joiners(draining)],
            draining=draining,
            now_s=time.time(),
            monotonic_s=time.monotonic(),
        )
        outcome = self._steering.steer(moment)
        for worker in self.get_workers():
            if id_of(worker.actor) in outcome.lost:
                self._placement.end(worker.actor)
        if self._steering.lost:  # at each look: a rank may come to its report() late
            self._free_reporters()
        statuses = self._masked(statuses)
        if outcome.forms and not any(status.training_report for status in statuses):
            self._form(outcome.forms)
            return [WorkerStatus(running=True) for _ in self.get_workers()]
        return statuses

    def _member(self, worker: Worker, status: WorkerStatus | None = None) -> Member:
        node = worker.metadata.node_id
        if node not in self._hosts:
            self._hosts |= {node: worker.metadata.hostname} | hooks.fleet_hosts(ray.nodes())
        return Member(
            id=id_of(worker.actor),
            node=node,
            host=self._hosts[node],
            has_died=status is not None and _has_died(status.error),
            has_returned=status is not None and not status.running and status.error is None,
        )

    def _is_mistake(self, statuses: list[WorkerStatus]) -> bool:
        """Whether some rank ended with an error of its own: that is for the failure policy."""
        return any(
            status.error is not None
            and not isinstance(status.error, WorkerHealthCheckFailedError)
            and id_of(worker.actor) not in self._steering.lost
            for worker, status in zip(self.get_workers(), statuses, strict=True)
        )

    def _masked(self, statuses: list[WorkerStatus]) -> list[WorkerStatus]:
        """What Ray may know: lost and departing members look as if they ran."""
        if not self._steering.is_formed:
            return statuses
        leaving = {*self._steering.lost, *self._steering.due}
        return [
            WorkerStatus(running=True, training_report=status.training_report)
            if status.error is not None or id_of(worker.actor) in leaving
            else status
            for worker, status in zip(self.get_workers(), statuses, strict=True)
        ]

    def _form(self, decision: Decision) -> None:
        """Make those that are wanted the members, and tell them."""
        workers = {id_of(w.actor): w for w in self.get_workers()}
        joined = {j.id: j.worker for j in self._joiners if j.id in decision.wanted}
        order = WorkerGroup._assign_worker_ranks(
            [(workers | joined)[member] for member in decision.wanted]
        )
        gone = [w for member, w in workers.items() if member not in decision.wanted]
        now = time.monotonic()
        lost = self._steering.lost
        self._departing += [Departing(w.actor, now) for w in gone if id_of(w.actor) not in lost]
        self._joiners = [j for j in self._joiners if j.id not in joined]
        self._worker_group_state = dataclasses.replace(
            self._worker_group_state, workers=list(order)
        )
        self._world_rank_to_ongoing_poll.clear()
        if gone or joined:
            self._forget_reports()
        places = {id_of(w.actor): _local(w) for w in order}
        self._steering.form([id_of(w.actor) for w in order], places, decision)

    def _forget_reports(self) -> None:
        """Nothing is left of reports that were under way; their queues have the group's size."""
        self._free_reporters()
        for callback in self._callbacks:
            if isinstance(callback, ReportCallbackHandler):
                callback.after_worker_group_start(self)

    def _free_reporters(self) -> None:
        """Ranks may wait in `report()` for one that is gone."""
        self._worker_group_state.sync_actor.reset.remote()

    def _tell(self, method: str, what: Any) -> None:
        """Ray repeats it when the rendezvous's process died meanwhile."""
        getattr(self._rendezvous, method).remote(what)

    def _end_departed(self) -> None:
        for one in list(self._departing):
            if one.has_returned() or time.monotonic() - one.since_s > _DEPART_S:
                self._departing.remove(one)
                self._placement.end(one.actor)


def _has_died(error: BaseException | None) -> bool:
    if not isinstance(error, WorkerHealthCheckFailedError):
        return False
    return isinstance(error.health_check_failure, ActorDiedError | OutOfMemoryError)


def _local(worker: Worker) -> Local:
    context = worker.distributed_context
    return Local(
        rank=context.local_rank, world=context.local_world_size, node_rank=context.node_rank
    )
