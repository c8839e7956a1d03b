"""Private parts that rebuilding in place touches: fails loudly when Ray or torch changes."""

import hashlib
import inspect
from typing import Any

import pytest
from ray.exceptions import RpcError
from ray.train.torch import config as torch_config
from ray.train.v2._internal.callbacks import datasets, working_dir_setup
from ray.train.v2._internal.execution import context
from ray.train.v2._internal.execution.checkpoint import report_handler, sync_actor
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.worker_group import execution_group, poll, worker_group
from ray.train.v2._internal.execution.worker_group import placement_group_handle as handles
from ray.train.v2._internal.execution.worker_group import worker as workers
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from torch.distributed import distributed_c10d

from rayburst.train.inplace import _ray_hooks as hooks
from rayburst.train.inplace.messages import Call
from rayburst.train.inplace.roster import InPlaceOptions
from rayburst.train.inplace.steering import Steering
from rayburst.train.losses import LossBudget, LossOptions

WHAT_TO_DO = (
    "{what} changed, which rayburst.train.inplace builds on. Read the new code, adapt "
    "inplace/_ray_hooks.py (or process_group.py), run tests/integration/train/test_in_place.py, "
    "then set the new digest here."
)
TOUCHED = {
    "TrainController.__init__": TrainController.__init__,
    "TrainController._start_worker_group": TrainController._start_worker_group,
    "WorkerGroup": worker_group.WorkerGroup,
    "Worker": workers.Worker,
    "WorkerGroupPollStatus": poll.WorkerGroupPollStatus,
    "DefaultPlacementGroupHandle": handles.DefaultPlacementGroupHandle,
    "ReplicaGroup": execution_group.ReplicaGroup,
    "ReportCallbackHandler": report_handler.ReportCallbackHandler,
    "SynchronizationActor.reset": sync_actor.SynchronizationBarrierResetError,
    "DistributedContext": context.DistributedContext,
    "TrainContext.report": context.TrainContext.report,
    "DatasetsCallback": datasets.DatasetsCallback,
    "WorkingDirectorySetupCallback": working_dir_setup.WorkingDirectorySetupCallback,
    "_set_torch_distributed_env_vars": torch_config._set_torch_distributed_env_vars,
    "DataParallelTrainer._initialize_and_run_controller": (
        DataParallelTrainer._initialize_and_run_controller
    ),
    "torch: _abort_process_group": distributed_c10d._abort_process_group,
    "torch: _process_group_name": distributed_c10d._process_group_name,
    "torch: _set_pg_timeout": distributed_c10d._set_pg_timeout,
}
TESTED = {
    "TrainController.__init__": "6cdd7a48a12057a5",
    "TrainController._start_worker_group": "290a6a582a29fb9a",
    "WorkerGroup": "7c7cdd2f9c66ec39",
    "Worker": "b4131e400debaddd",
    "WorkerGroupPollStatus": "bf6e41353eb5a467",
    "DefaultPlacementGroupHandle": "5b52c6c1705ec3a8",
    "ReplicaGroup": "f26549d99ba01d0b",
    "ReportCallbackHandler": "60a23156c287ce6b",
    "SynchronizationActor.reset": "852b718f285c0cfe",
    "DistributedContext": "b31dddc6bf0fa6e9",
    "TrainContext.report": "f71e5c6082d8b493",
    "DatasetsCallback": "28820ebb1888056b",
    "WorkingDirectorySetupCallback": "bd079af36292d830",
    "_set_torch_distributed_env_vars": "23d2c9e1353baf3a",
    "DataParallelTrainer._initialize_and_run_controller": "dfb9cd806833d45d",
    "torch: _abort_process_group": "3a30a35863a0b3bb",
    "torch: _process_group_name": "ab6c8557639bd43a",
    "torch: _set_pg_timeout": "a7ee88d0d0ddaa28",
}


@pytest.mark.parametrize("what", TOUCHED)
def test_the_code_under_the_hooks_is_what_was_tested(what: str) -> None:
    source = inspect.getsource(TOUCHED[what])
    found = hashlib.blake2b(source.encode(), digest_size=8).hexdigest()
    assert found == TESTED[what], WHAT_TO_DO.format(what=what)


def test_what_is_overridden_exists_in_the_parent() -> None:
    own = hooks.InPlaceWorkerGroup.__dict__
    for name in (
        "_start_impl",
        "_create_placement_group",
        "_create_workers",
        "_init_train_context",
        "poll_status",
        "shutdown",
        "abort",
    ):
        assert name in own
        assert hasattr(worker_group.WorkerGroup, name), WHAT_TO_DO.format(what=name)


def test_the_controller_makes_its_groups_through_an_attribute() -> None:
    source = inspect.getsource(TrainController._start_worker_group)
    assert "self.worker_group_cls.create(" in source, WHAT_TO_DO.format(what="TrainController")


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A formed group whose controller is the test; `told`: what its members hear."""
    made: Any = object.__new__(hooks.InPlaceWorkerGroup)
    made.told = []
    made._steering = Steering(
        tell=lambda method, what: made.told.append(what),
        unreachable=lambda addresses: set(),
        options=InPlaceOptions(),
        budget=LossBudget(LossOptions()),
        least=1,
        most=2,
    )
    made._steering.generation = 1
    made.get_workers = list
    return made


def failing(error: Exception) -> Any:
    def steer(look: Any, statuses: Any) -> Any:
        raise error

    return steer


def test_a_state_that_nobody_thought_of_makes_the_group_save_and_restart(group: Any) -> None:
    group._steer = failing(KeyError("a member that is not there"))
    statuses = [poll.WorkerStatus(running=True)]
    assert group._steered(None, statuses) is statuses
    assert group.told == [Call(number=1, kind="leave", reason=group._steering.handed_over)]
    assert "KeyError: 'a member that is not there'" in group._steering.handed_over


def test_a_head_that_is_busy_is_asked_again(group: Any) -> None:
    group._steer = failing(RpcError("unavailable"))
    group._steered(None, [])
    assert group.is_formed
    assert group.told == []
