"""Which failures are tried again. Private parts of one Ray only:
`rayburst.train.versions.TESTED_RAY`.

| touched | why |
|---|---|
| `DefaultFailurePolicy` | a lost machine is retried, a user's mistake is not |
| errors of `ray.train.v2._internal.exceptions` | to tell one from the other |

`tests/unit/train/test_train_ray_hooks.py` compares it with what was tested.
"""

from __future__ import annotations

import time
from typing import Any

from ray.exceptions import GetTimeoutError, OutOfMemoryError, RayActorError, RpcError
from ray.train.v2._internal.exceptions import (
    WorkerHealthCheckFailedError,
    WorkerHealthCheckTimeoutError,
)
from ray.train.v2._internal.execution.failure_handling import FailureDecision
from ray.train.v2._internal.execution.failure_handling.default import DefaultFailurePolicy
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from rayburst.train.losses import LossBudget, is_planned

__all__ = ["LossPolicy"]

_LOSSES = (RayActorError, OutOfMemoryError, RpcError, GetTimeoutError)
"""Of a worker or of the head, while the controller starts or looks at its group."""


class LossPolicy(DefaultFailurePolicy):  # type: ignore[misc]
    """Retries what a lost machine causes; what a training function raises ends the run.

    Stock counts both against `max_failures`, unless one of them is marked as a preemption, and then
    retries even when another rank raised a mistake of the user's.
    """

    def __init__(self, failure_config: Any, budget: LossBudget) -> None:
        super().__init__(failure_config)
        self.budget = budget

    def make_decision(self, training_failed_error: Any) -> Any:
        if isinstance(training_failed_error, ControllerError):
            failure = training_failed_error.controller_failure
            # stock ends the run when a node dies in the last moment of a start
            is_lost = isinstance(failure, _LOSSES)
            if is_lost and self.budget.spend(time.monotonic()):
                return FailureDecision.RETRY
        if not isinstance(training_failed_error, WorkerGroupError):
            return super().make_decision(training_failed_error)
        failures = training_failed_error.worker_failures
        mistakes = {rank: error for rank, error in failures.items() if not _is_loss(error)}
        if mistakes:
            return super().make_decision(
                WorkerGroupError(str(training_failed_error), worker_failures=mistakes)
            )
        if not any(is_planned(error) for error in failures.values()) and not self.budget.spend(
            time.monotonic()
        ):
            return FailureDecision.RAISE
        return FailureDecision.RETRY


def _is_loss(error: BaseException) -> bool:
    if isinstance(error, WorkerHealthCheckFailedError):
        return isinstance(error.health_check_failure, RayActorError | OutOfMemoryError)
    return isinstance(error, RayActorError | WorkerHealthCheckTimeoutError)
