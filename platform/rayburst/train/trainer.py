"""ElasticTrainer: Ray Train's TorchTrainer that survives the loss of machines.

    def train(config): ...                  # an ordinary Ray Train function
    trainer = ElasticTrainer(train, config={...}, run="mine", storage="s3://bucket/runs",
                             workers=Workers(least=1, most=4))
    result = trainer.fit()                  # ray.train.Result

What it changes about Ray's elastic training:
- A lost machine never fails the run, whatever `max_failures` says; what the training function
  itself raises ends the run at once.
- A group whose function uses `start_run` (or `rayburst.train.membership`) is rebuilt in place when
  machines come or go: its processes and their state stay.
- Where it is not, it restarts after a loss without waiting for the head to declare the node dead,
  and never on a node that drains.
- A group that restarts to grow is not killed for it: it is asked to save and leave, and only when
  the restart pays. `resize_interval_s` is the least time between two such looks. The default of
  20 s is chosen against a restart of 10-15 s: a group trains at least as long as its restart took,
  and nodes that join one by one within a burst cost one restart, not several.

The function learns of notices through `rayburst.train.worker.agreement()`. On a Ray other than the
tested version only public API is used: stock policies and settings, and another start where Ray
gives up on workers that were lost. Ray's own settings (`RAY_TRAIN_*`, see `_ray_hooks.SETTINGS`)
are put into the environment of this process when `fit` is called, where not set already; Ray hands
them on to the controller and the workers.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Literal

import ray
import ray.train
from ray.exceptions import RayActorError
from ray.train.torch import TorchTrainer

from rayburst.checkpoint.peers import release_peer
from rayburst.train.inplace.roster import InPlaceOptions
from rayburst.train.losses import LossBudget, LossOptions, are_losses, surviving
from rayburst.train.resizing import GrowthOptions
from rayburst.train.torch_group import TorchGroupConfig
from rayburst.train.versions import is_tested_ray

__all__ = ["ElasticOptions", "ElasticTrainer", "Workers"]

_logger = logging.getLogger(__name__)
RECOVERIES = ("in-place", "restart", "public")


@dataclass(frozen=True, kw_only=True, slots=True)
class Workers:
    """How many workers, and what each one takes. One CPU each, and one GPU with `use_gpu`."""

    least: int = 1
    most: int = 1
    use_gpu: bool = False
    resources: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most:
            raise ValueError(
                f"Workers(least={self.least}, most={self.most}): give 1 <= least <= most"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class ElasticOptions:
    """How an elastic run reacts. `checkpoints_kept`: Ray deletes older ones.

    `recovery` is the tier: `in-place` rebuilds a group whose function uses `start_run` or
    `rayburst.train.membership`, and restarts any other, and where it meets a state that it does not
    know; `restart` always restarts the whole group; `public` uses public API of Ray alone, as every
    tier does on a Ray that was not tested.
    `resize_interval_s`: None is 5 s where a group is rebuilt in place, 20 s where it restarts.
    `collective_timeout_s`: how long a rank waits for its peers in a collective before it gives up;
    it must cover the slowest rank's loading of data.
    """

    recovery: Literal["in-place", "restart", "public"] = "in-place"
    resize_interval_s: float | None = None
    collective_timeout_s: float = 300.0
    checkpoints_kept: int = 2
    max_failures: int = 0
    growth: GrowthOptions = field(default_factory=GrowthOptions)
    losses: LossOptions = field(default_factory=LossOptions)
    in_place: InPlaceOptions = field(default_factory=InPlaceOptions)

    def __post_init__(self) -> None:
        if self.recovery not in RECOVERIES:
            raise ValueError(
                f"ElasticOptions(recovery={self.recovery!r}): give one of {', '.join(RECOVERIES)}"
            )
        if (self.resize_interval_s or 0.0) < 0 or self.collective_timeout_s <= 0:
            raise ValueError(f"{self}: intervals and time-outs are above 0")

    def resize_s(self, *, in_place: bool) -> float:
        """The least time between two looks at whether a larger group would pay."""
        if self.resize_interval_s is not None:
            return self.resize_interval_s
        return 5.0 if in_place else 20.0


class ElasticTrainer:
    """Runs `train_fn` on as many workers as there are, between `workers.least` and `.most`.

    `train_fn` takes the dict `config`, or nothing. `run` names the folder below `storage` (a URI or
    a path all nodes see) that holds checkpoints; the same name again resumes.
    """

    def __init__(
        self,
        train_fn: Callable[..., Any],
        *,
        config: dict[str, Any] | None = None,
        run: str,
        storage: str,
        workers: Workers,
        options: ElasticOptions | None = None,
    ) -> None:
        self._options = options or ElasticOptions()
        is_public = self._options.recovery == "public"
        self._train_fn = surviving(train_fn, public_api_alone=is_public)
        self._config = config
        self._run = run
        self._storage = storage
        self._workers = workers

    def fit(self) -> Any:
        """Train to the end and return Ray's `ray.train.Result`.

        Raises `ray.train.TrainingFailedError` when the function raised (its text holds the
        traceback) or when losses follow each other too quickly.
        """
        try:
            if self._options.recovery == "in-place" and not self._is_public:
                return self._trainer(os.environ).fit()
            return self._fit_again_and_again()
        finally:
            if ray.is_initialized():
                release_peer(self._run)

    @property
    def _is_public(self) -> bool:
        return self._options.recovery == "public" or not is_tested_ray()

    def _fit_again_and_again(self) -> Any:
        """From the newest snapshot, as often as Ray ends the run for losses and for nothing else.

        Its controller has died, and its workers with it; or, with public API alone, all workers are
        lost, or it sees a loss before those that are left have left.
        """
        budget = LossBudget(self._options.losses)
        while True:
            try:
                return self._trainer(os.environ).fit()
            except RayActorError as error:
                if not budget.spend(time.monotonic()):
                    raise
                _logger.warning("the controller died, training starts again: %s", error)
            except ray.train.TrainingFailedError as error:
                failures = list(getattr(error, "worker_failures", {}).values())
                is_lost = self._is_public and are_losses(failures)
                if not is_lost or not budget.spend(time.monotonic()):
                    raise
                _logger.warning("workers were lost, training starts again: %s", failures[0])

    def _trainer(self, environ: MutableMapping[str, str]) -> Any:
        arguments = self._ray_arguments()
        options = self._options
        if self._is_public:
            return TorchTrainer(self._train_fn, **arguments)
        from rayburst.train import _ray_hooks

        is_in_place = options.recovery == "in-place"
        settings = _ray_hooks.SETTINGS | (_ray_hooks.IN_PLACE_SETTINGS if is_in_place else {})
        for name, value in settings.items():
            environ.setdefault(name, value)
        return _ray_hooks.HookedTorchTrainer(
            self._train_fn,
            growth_options=options.growth,
            loss_options=options.losses,
            in_place=options.in_place if is_in_place else None,
            in_place_resize_s=options.resize_s(in_place=True),
            **arguments,
        )

    def _ray_arguments(self) -> dict[str, Any]:
        options, workers = self._options, self._workers
        scaling = ray.train.ScalingConfig(
            num_workers=(workers.least, workers.most),
            use_gpu=workers.use_gpu,
            resources_per_worker=workers.resources or None,
            elastic_resize_monitor_interval_s=options.resize_s(in_place=False),
        )
        run = ray.train.RunConfig(
            name=self._run,
            storage_path=self._storage,
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=options.checkpoints_kept),
            # losses are charged to max_preemption_failures, which has no limit by default
            failure_config=ray.train.FailureConfig(max_failures=options.max_failures),
            # what a lost machine causes is warned of with tracebacks, and expected here
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
        )
        # gloo beside nccl: what ranks tell each other about leaving stays on the CPU
        backend = "cpu:gloo,cuda:nccl" if workers.use_gpu else "gloo"
        return {
            "train_loop_config": self._config,
            "scaling_config": scaling,
            "run_config": run,
            "torch_config": TorchGroupConfig(
                backend=backend, timeout_s=int(options.collective_timeout_s)
            ),
        }
