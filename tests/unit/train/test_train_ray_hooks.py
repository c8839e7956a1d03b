"""Ray's private parts that training touches: fails loudly when Ray changes, and says what to do."""

import hashlib
import inspect
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
    _AutoscalingCoordinatorActor,
)
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.experimental import internal_kv
from ray.train import FailureConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks import backend_setup
from ray.train.v2._internal.exceptions import (
    UserExceptionWithTraceback,
    WorkerHealthCheckFailedError,
)
from ray.train.v2._internal.execution import context, scaling_policy
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.failure_handling import FailureDecision
from ray.train.v2._internal.execution.failure_handling.default import DefaultFailurePolicy
from ray.train.v2._internal.execution.scaling_policy import NoopDecision, ResizeDecision
from ray.train.v2._internal.execution.scaling_policy.elastic import ElasticScalingPolicy
from ray.train.v2._internal.execution.worker_group import state as group_state
from ray.train.v2._internal.execution.worker_group import worker_group
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from rayburst.fleet.book import STANDING_S
from rayburst.train import _ray_hooks as hooks
from rayburst.train import losses, trainer, versions
from rayburst.train.granted import Granted
from rayburst.train.grants import Ask, Grant
from rayburst.train.inplace.policy import InPlacePolicy
from rayburst.train.losing._ray_hooks import LossPolicy
from rayburst.train.losses import LossBudget, LossOptions
from rayburst.train.resizing import GrowthOptions

WHAT_TO_DO = (
    "Ray changed {what}, which rayburst.train._ray_hooks builds on. Read the new code, "
    "adapt the hooks, run tests/integration/train, then set the new digest here and "
    "rayburst.train.versions.TESTED_RAY."
)
TOUCHED = {
    "ElasticScalingPolicy": (ElasticScalingPolicy, "f9876b68eee2a7e3"),
    "DefaultFailurePolicy": (DefaultFailurePolicy, "d9ea2facd9ba432c"),
    "DataParallelTrainer.fit": (DataParallelTrainer.fit, "c8a619d33e1aa03c"),
    "DataParallelTrainer._initialize_and_run_controller": (
        DataParallelTrainer._initialize_and_run_controller,
        "dfb9cd806833d45d",
    ),
    "TrainController._step": (TrainController._step, "6e0ad5c6f4345a7d"),
    "TrainController._start_worker_group": (
        TrainController._start_worker_group,
        "290a6a582a29fb9a",
    ),
    "_AutoscalingCoordinatorActor.get_reserved_resources": (
        _AutoscalingCoordinatorActor.get_reserved_resources,
        "f349102f93addb5a",
    ),
    "TrainController._shutdown_worker_group": (
        TrainController._shutdown_worker_group,
        "c3dcbf9a39d68ba9",
    ),
    "WorkerGroupState.shutdown": (group_state.WorkerGroupState.shutdown, "ef71b08a2800a29d"),
    "WorkerGroup.shutdown": (worker_group.WorkerGroup.shutdown, "293ac6b64e41352d"),
    "BackendSetupCallback": (backend_setup.BackendSetupCallback, "38e8071f7d58c659"),
}


def test_the_installed_ray_is_the_tested_one() -> None:
    assert ray.__version__ == versions.TESTED_RAY, WHAT_TO_DO.format(what="its version")
    assert versions.is_tested_ray()


@pytest.mark.parametrize("is_tested", [True, False])
def test_groups_are_rebuilt_in_place_by_default_and_another_ray_gets_its_own_trainer(
    monkeypatch: pytest.MonkeyPatch, is_tested: bool
) -> None:
    monkeypatch.setattr(trainer, "is_tested_ray", lambda: is_tested)
    workers = trainer.Workers(least=1, most=2)
    environ: dict[str, str] = {}
    made = trainer.ElasticTrainer(print, run="r", storage="/tmp/r", workers=workers)
    kind = type(made._trainer(environ))
    assert kind is (hooks.HookedTorchTrainer if is_tested else TorchTrainer)
    interval = environ.get("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S")
    assert interval == (hooks.SETTINGS | hooks.IN_PLACE_SETTINGS if is_tested else {}).get(
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"
    )


@pytest.mark.parametrize("what", TOUCHED)
def test_the_code_under_the_hooks_is_what_was_tested(what: str) -> None:
    touched, expected = TOUCHED[what]
    found = hashlib.blake2b(inspect.getsource(touched).encode(), digest_size=8).hexdigest()
    assert found == expected, WHAT_TO_DO.format(what=what)


def test_a_standing_request_is_forgotten_when_the_planner_thinks_so() -> None:
    assert STANDING_S > scaling_policy.AUTOSCALING_REQUESTS_EXPIRE_TIME_S


def test_small_private_functions_keep_their_shape() -> None:
    state: Any = ray._private.state
    for function, parameters in (
        (state.state.get_draining_nodes, []),
        (state.available_resources_per_node, []),
        (internal_kv._internal_kv_get, ["key", "namespace"]),
        (internal_kv._internal_kv_put, ["key", "value", "overwrite", "namespace"]),
        (internal_kv._internal_kv_del, ["key", "del_by_prefix", "namespace"]),
    ):
        assert list(inspect.signature(function).parameters) == parameters, function
    assert context.logger.name == context.__file__
    assert ray._raylet.RAY_NODE_ID_KEY == "ray.io/node-id"


def test_settings_are_names_that_ray_reads() -> None:
    from ray.train.v2._internal import constants

    assert set(hooks.SETTINGS) <= constants.ENV_VARS_TO_PROPAGATE


class Cluster:
    """Three nodes of one CPU, as the policy sees them; the test changes what it likes."""

    def __init__(self) -> None:
        self.ids = ["n1", "n2", "n3"]
        self.draining: dict[str, float | None] = {}
        self.dead: set[str] = set()
        self.free: set[str] = set()
        self.kv: dict[str, bytes] = {}
        self.now = 1000.0

    def nodes(self) -> list[dict[str, Any]]:
        return [
            {
                "NodeID": i,
                "NodeManagerAddress": i,
                "NodeManagerPort": 1,
                "Alive": True,
                "Labels": {"rayburst.io/host": i.replace("n", "host-")},
            }
            for i in self.ids
        ]

    def reserved(self) -> dict[str, dict[str, float]]:
        return {i: {"CPU": 1.0} for i in self.ids}

    def group(self, *ids: str) -> SimpleNamespace:
        workers = [SimpleNamespace(metadata=SimpleNamespace(node_id=i)) for i in ids]
        return SimpleNamespace(workers=workers, num_workers=len(ids), start_time=self.now)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    fake = Cluster()
    monkeypatch.setattr(hooks.ray, "nodes", fake.nodes)
    monkeypatch.setattr(hooks, "draining_nodes", lambda: fake.draining)
    monkeypatch.setattr(hooks, "unreachable", lambda nodes, timeout_s: set(nodes) & fake.dead)
    monkeypatch.setattr(
        hooks.ray._private.state,
        "available_resources_per_node",
        lambda: {i: {"CPU": float(i in fake.free)} for i in fake.ids},
    )
    monkeypatch.setattr(hooks, "kv_get", fake.kv.get)
    monkeypatch.setattr(hooks, "kv_put", fake.kv.__setitem__)
    monkeypatch.setattr(hooks, "kv_delete", lambda key: fake.kv.pop(key, None))
    monkeypatch.setattr(hooks.time, "monotonic", lambda: fake.now)

    def sleep(seconds: float) -> None:
        fake.now += seconds

    monkeypatch.setattr(hooks.time, "sleep", sleep)
    return fake


@pytest.fixture
def policy(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> hooks.DrainAwarePolicy:
    scaling = ScalingConfig(num_workers=(1, 4), elastic_resize_monitor_interval_s=20)
    made = hooks.DrainAwarePolicy(scaling, GrowthOptions(start_patience_s=10, leave_within_s=30))
    made._resize_key, made._progress_key = hooks.resize_key("r"), hooks.progress_key("r")
    monkeypatch.setattr(made, "_maybe_send_resource_request", lambda: None)
    monkeypatch.setattr(made, "_get_reserved_resources", cluster.reserved)
    return made


def start(policy: hooks.DrainAwarePolicy, cluster: Cluster) -> int:
    """The size it starts with, once it does."""
    for _ in range(200):
        decision = policy.make_decision_for_non_running_worker_group()
        if isinstance(decision, ResizeDecision):
            return decision.num_workers
        assert isinstance(decision, NoopDecision)
    raise AssertionError("it never starts")


def running(policy: hooks.DrainAwarePolicy, group: SimpleNamespace) -> Any:
    return policy.make_decision_for_running_worker_group(group, None)


def test_the_first_start_waits_a_moment_for_the_full_size(
    policy: hooks.DrainAwarePolicy, cluster: Cluster
) -> None:
    began = cluster.now
    assert start(policy, cluster) == 3
    assert 9.5 < cluster.now - began < 11


def test_the_full_size_starts_at_once_and_so_does_every_restart(
    policy: hooks.DrainAwarePolicy, cluster: Cluster
) -> None:
    cluster.ids.append("n4")
    assert start(policy, cluster) == 4
    running(policy, cluster.group(*cluster.ids))
    cluster.ids.remove("n4")
    began = cluster.now
    assert start(policy, cluster) == 3
    assert cluster.now == began


def test_draining_and_dead_nodes_do_not_count(
    policy: hooks.DrainAwarePolicy, cluster: Cluster
) -> None:
    running(policy, cluster.group("n1"))
    cluster.draining = {"n1": 2000.0}
    cluster.dead = {"n3"}
    assert start(policy, cluster) == 1
    selector = policy.on_controller_start_worker_group(
        scaling_config=policy.scaling_config, num_workers=1
    )
    assert selector == {"ray.io/node-id": "!in(n1,n3)"}


def test_without_trouble_there_is_no_selector(
    policy: hooks.DrainAwarePolicy, cluster: Cluster
) -> None:
    config = policy.scaling_config
    assert policy.on_controller_start_worker_group(scaling_config=config, num_workers=1) is None


def test_too_few_nodes_wait(policy: hooks.DrainAwarePolicy, cluster: Cluster) -> None:
    cluster.dead = set(cluster.ids)
    decision = policy.make_decision_for_non_running_worker_group()
    assert isinstance(decision, NoopDecision)


def test_a_start_that_fails_is_tried_smaller(
    policy: hooks.DrainAwarePolicy, cluster: Cluster
) -> None:
    sizes = [start(policy, cluster) for _ in range(4)]
    assert sizes == [3, 2, 1, 1]
    running(policy, cluster.group("n1"))
    assert start(policy, cluster) == 3


def test_a_running_group_is_asked_before_it_grows(
    policy: hooks.DrainAwarePolicy, cluster: Cluster
) -> None:
    group = cluster.group("n1", "n2")
    cluster.free = {"n3"}
    cluster.now += 19
    assert isinstance(running(policy, group), NoopDecision)
    assert cluster.kv == {}
    cluster.now += 1
    assert isinstance(running(policy, group), NoopDecision)
    assert cluster.kv == {"r/resize": b"2 -> 3"}
    config = policy.scaling_config
    policy.on_controller_start_worker_group(scaling_config=config, num_workers=3)
    assert cluster.kv == {}


def test_a_group_that_does_not_leave_is_resized_as_it_is(
    policy: hooks.DrainAwarePolicy, cluster: Cluster
) -> None:
    group = cluster.group("n1", "n2")
    cluster.free = {"n3"}
    cluster.now += 20
    running(policy, group)
    cluster.now += 31
    decision = running(policy, group)
    assert isinstance(decision, ResizeDecision)
    assert decision.num_workers == 3


def test_growth_that_does_not_pay_is_left_alone(
    policy: hooks.DrainAwarePolicy, cluster: Cluster
) -> None:
    cluster.free = {"n3"}
    cluster.kv["r/progress"] = b'{"eta_s": 10}'
    group = cluster.group("n1", "n2")
    cluster.now += 100
    running(policy, group)
    assert "r/resize" not in cluster.kv


def test_nodes_that_others_use_are_no_growth(
    policy: hooks.DrainAwarePolicy, cluster: Cluster
) -> None:
    group = cluster.group("n1", "n2")
    cluster.now += 100
    running(policy, group)
    assert cluster.kv == {}


def test_a_group_about_to_lose_a_node_is_not_resized(
    policy: hooks.DrainAwarePolicy, cluster: Cluster
) -> None:
    cluster.ids += ["n4", "n5"]
    cluster.free = {"n3", "n4", "n5"}
    cluster.draining = {"n1": 2000.0}
    group = cluster.group("n1", "n2")
    cluster.now += 100
    assert isinstance(running(policy, group), NoopDecision)
    assert cluster.kv == {}


@pytest.fixture
def job(policy: hooks.DrainAwarePolicy, cluster: Cluster) -> hooks.DrainAwarePolicy:
    """The same policy in a run that was submitted as a Ray job."""
    policy._granted = Granted(
        "job-1", kv_get=cluster.kv.get, kv_put=cluster.kv.__setitem__, clock=lambda: cluster.now
    )
    return policy


def test_a_job_starts_on_the_hosts_of_its_grant_and_waits_without_one(
    job: hooks.DrainAwarePolicy, cluster: Cluster
) -> None:
    cluster.kv["planner"] = b'["host-2"]'
    assert isinstance(job.make_decision_for_non_running_worker_group(), NoopDecision)
    asked = Ask.from_json(cluster.kv["jobs/job-1/ask"])
    assert (asked.run, asked.least, asked.most, asked.resources) == ("r", 1, 4, {"CPU": 1})
    cluster.kv["jobs/job-1/grant"] = Grant(hosts=("host-2",), pools={"host": 1}).to_json()
    assert start(job, cluster) == 1
    selector = job.on_controller_start_worker_group(
        scaling_config=job.scaling_config, num_workers=1
    )
    assert selector == {"rayburst.io/host": "in(host-2)"}


def test_a_job_that_waits_frees_the_nodes_of_its_last_group(
    job: hooks.DrainAwarePolicy, cluster: Cluster
) -> None:
    ended: list[str] = []
    group = cluster.group("n2")
    group.shutdown = lambda: ended.append("n2")
    cluster.kv["planner"] = b'["host-2"]'
    cluster.kv["jobs/job-1/grant"] = Grant(hosts=("host-2",), pools={"host": 1}).to_json()
    running(job, group)
    assert start(job, cluster) == 1
    assert ended == [], "the controller ends it before the next start"
    running(job, group)
    cluster.kv["jobs/job-1/grant"] = Grant().to_json()
    for _ in range(2):
        assert isinstance(job.make_decision_for_non_running_worker_group(), NoopDecision)
    assert ended == ["n2"]


def test_so_does_one_whose_group_is_rebuilt_in_place_and_it_asks_for_joiners_too(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = InPlacePolicy(
        ScalingConfig(num_workers=(1, 4)), GrowthOptions(), "job-1", rebuild_s=2, resize_s=5
    )
    made._resize_key, made._progress_key = hooks.resize_key("r"), hooks.progress_key("r")
    monkeypatch.setattr(made, "_maybe_send_resource_request", lambda: None)
    monkeypatch.setattr(made, "_get_reserved_resources", cluster.reserved)
    ended: list[str] = []
    made.groups = SimpleNamespace(  # type: ignore[assignment]
        current=SimpleNamespace(
            is_formed=True,
            has_heartbeats=True,
            joining=1,
            joiner_nodes=["n3"],
            revoked=set(),
            let_go=lambda: ended.append("all"),
        )
    )
    cluster.kv["planner"] = b'["host-2"]'
    cluster.kv["jobs/job-1/grant"] = Grant(hosts=("host-2",), pools={"host": 1}).to_json()
    assert isinstance(running(made, cluster.group("n1", "n2")), NoopDecision)
    assert made.groups.current is not None
    assert made.groups.current.revoked == {"n1", "n3"}, "left in place, at the end of a step"
    assert ended == []
    cluster.kv["jobs/job-1/grant"] = Grant().to_json()
    for _ in range(2):
        assert isinstance(made.make_decision_for_non_running_worker_group(), NoopDecision)
    assert ended == ["all"]


def test_a_job_counts_its_granted_nodes_whoever_the_coordinator_gave_them_to(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    scaling = ScalingConfig(num_workers=(1, 4))
    made = hooks.DrainAwarePolicy(scaling, GrowthOptions())
    made._granted = Granted(
        "job-1", kv_get=cluster.kv.get, kv_put=cluster.kv.__setitem__, clock=lambda: cluster.now
    )
    cluster.kv["planner"] = b"[]"
    cluster.kv["jobs/job-1/grant"] = Grant(hosts=("host-3",)).to_json()
    whole = [{**node, "Resources": {"CPU": 1.0}} for node in cluster.nodes()]
    monkeypatch.setattr(hooks.ray, "nodes", lambda: whole)
    assert made._get_reserved_resources() == {"n3": {"CPU": 1.0}}


def test_a_job_leaves_hosts_that_its_grant_no_longer_names(
    job: hooks.DrainAwarePolicy, cluster: Cluster
) -> None:
    cluster.kv["planner"] = b"[]"
    cluster.kv["jobs/job-1/grant"] = Grant(hosts=("host-1", "host-2")).to_json()
    assert isinstance(running(job, cluster.group("n1", "n2")), NoopDecision)
    assert "r/resize" not in cluster.kv
    cluster.kv["jobs/job-1/grant"] = Grant(hosts=("host-1",)).to_json()
    running(job, cluster.group("n1", "n2"))
    assert cluster.kv["r/resize"] == b"2 -> 1"
    assert Ask.from_json(cluster.kv["jobs/job-1/ask"]).hosts == ("host-1", "host-2")


def test_a_run_that_is_submitted_again_frees_what_its_lost_driver_had_reserved(
    policy: hooks.DrainAwarePolicy, cluster: Cluster
) -> None:
    cancelled: list[str] = []

    class Client:
        def __init__(self, requester: str) -> None:
            self.requester = requester

        def cancel_resource_request(self) -> None:
            cancelled.append(self.requester)

    for requester, storage in (("1", "s3://a"), ("1", "s3://a"), ("2", "s3://a"), ("3", "s3://b")):
        policy._requester_id, policy._coordinator_client = requester, Client(requester)
        policy._take_over("r/requester", storage)
    assert cancelled == ["1"], "not its own, nor that of another run of this name"


def test_a_driver_that_is_no_job_keeps_off_the_hosts_of_others(
    policy: hooks.DrainAwarePolicy, cluster: Cluster
) -> None:
    assert policy._unusable() == set()
    policy._granted = Granted(
        "", kv_get=cluster.kv.get, kv_put=cluster.kv.__setitem__, clock=lambda: cluster.now
    )
    cluster.kv["planner"] = b'["host-1", "host-9"]'
    assert policy._unusable() == {"n1"}
    assert not [key for key in cluster.kv if key.startswith("jobs/")]


def test_a_job_knows_its_submission_id() -> None:
    from ray.dashboard.modules.job import common
    from ray.dashboard.modules.job.job_supervisor import RAY_JOB_CONFIG_JSON_ENV_VAR

    config = json.dumps({"metadata": {common.JOB_ID_METADATA_KEY: "first"}})
    assert hooks.submission_id({RAY_JOB_CONFIG_JSON_ENV_VAR: config}) == "first"
    assert hooks.submission_id({}) == ""


def failed(**failures: Exception) -> WorkerGroupError:
    by_rank = dict(enumerate(failures.values()))
    return WorkerGroupError("it failed", worker_failures=by_rank)


def left(cause: Exception | None = None) -> RayActorError:
    try:
        losses.leave("gone", cause)
    except RayActorError as error:
        return error


def lost_node() -> WorkerHealthCheckFailedError:
    return WorkerHealthCheckFailedError("no answer", failure=RayActorError(error_msg="node died"))


@pytest.fixture
def decide() -> Callable[[Exception], FailureDecision]:
    budget = LossBudget(LossOptions(rapid_losses=3, rapid_within_s=60))
    return LossPolicy(FailureConfig(max_failures=0), budget).make_decision


def test_lost_machines_are_retried(decide: Callable[[Exception], Any]) -> None:
    peer = left(RuntimeError("gloo: connection reset by peer"))
    assert decide(failed(a=lost_node(), b=peer)) == FailureDecision.RETRY


def test_what_fit_raises_tells_losses_from_mistakes_without_private_api() -> None:
    out_of_memory = WorkerHealthCheckFailedError("gone", failure=OutOfMemoryError("low"))
    mistake = UserExceptionWithTraceback(ValueError("mine"), "Traceback: mine")
    unpicklable = WorkerHealthCheckFailedError("no answer", failure=TypeError("cannot pickle"))
    assert losses.are_losses([lost_node(), out_of_memory, left(RuntimeError("a peer"))])
    for other in (mistake, unpicklable, KeyError("a wrapper of another Ray")):
        assert not losses.are_losses([lost_node(), other])
    assert not losses.are_losses([])


def test_a_mistake_ends_the_run_even_beside_a_loss(decide: Callable[[Exception], Any]) -> None:
    assert decide(failed(a=ValueError("mine"))) == FailureDecision.RAISE
    assert decide(failed(a=left(), b=ValueError("mine"))) == FailureDecision.RAISE
    unpicklable = WorkerHealthCheckFailedError("no answer", failure=TypeError("cannot pickle"))
    assert decide(failed(a=unpicklable)) == FailureDecision.RAISE


def test_a_worker_that_was_ended_for_its_memory_is_a_loss(
    decide: Callable[[Exception], Any],
) -> None:
    ended = WorkerHealthCheckFailedError("no answer", failure=OutOfMemoryError("low on memory"))
    assert decide(failed(a=ended)) == FailureDecision.RETRY


def test_a_worker_lost_while_its_group_starts_is_a_loss_and_a_defect_of_ours_is_not(
    decide: Callable[[Exception], Any],
) -> None:
    causes = [RayActorError(error_msg="node died"), OutOfMemoryError("low on memory")] * 2
    found = [decide(ControllerError(cause)) for cause in causes]
    assert found == [FailureDecision.RETRY] * 3 + [FailureDecision.RAISE]
    assert decide(ControllerError(KeyError("member"))) == FailureDecision.RAISE


def test_losses_without_end_give_up_and_planned_leaving_does_not(
    decide: Callable[[Exception], Any],
) -> None:
    for _ in range(10):
        assert decide(failed(a=left(), b=left())) == FailureDecision.RETRY
    assert [decide(failed(a=lost_node())) for _ in range(4)] == [
        FailureDecision.RETRY,
        FailureDecision.RETRY,
        FailureDecision.RETRY,
        FailureDecision.RAISE,
    ]
