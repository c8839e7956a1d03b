"""Where a run's process finds itself: in a Ray Train worker, under torchrun, or alone.

The same training function runs in all three. In a worker the place, the notices and the reports are
Ray's; elsewhere the process group is torch's (where one was made), the run's folder is named by the
caller, and leaving raises RunLeftError.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import torch.distributed as dist

from rayburst.checkpoint.checkpointer import Saved
from rayburst.checkpoint.store import ObjectStore
from rayburst.errors import RunLeftError, TrainError
from rayburst.train import losses
from rayburst.train.membership import Membership
from rayburst.train.notices import Agreement, Notice, NoticeWatcher
from rayburst.train.peer import Peer, RayPeer
from rayburst.train.place import Place
from rayburst.train.versions import is_tested_ray

__all__ = ["Surroundings", "find_surroundings", "is_ray_worker"]

_logger = logging.getLogger(__name__)
NoticeSource = Callable[[], Notice | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Surroundings:
    """Place of this process, the run's folder, and whom to tell what."""

    membership: Membership
    folder: ObjectStore
    report: Callable[[Mapping[str, Any], Saved | None], None]
    leave: Callable[[str], NoReturn]
    publish: Callable[[bytes], None]
    peer: Peer | None = None

    @property
    def place(self) -> Place:
        """Rank, world and node; rank and world change when the group does."""
        return self.membership.place

    @property
    def rank(self) -> int:
        """This worker's number, from 0."""
        return self.place.rank

    @property
    def world(self) -> int:
        """How many workers there are."""
        return self.place.world

    @property
    def name(self) -> str:
        """The run's name: the last part of its folder."""
        return self.folder.uri.rstrip("/").rsplit("/", 1)[-1]


def find_surroundings(
    storage: str | None, notices: NoticeSource | None, leave_margin_s: float
) -> Surroundings:
    """What this process runs in. `storage`: the run's folder, needed outside Ray Train only."""
    if is_ray_worker():
        if storage is not None:
            raise TrainError(
                f"storage={storage!r} in a Ray Train worker: its run's folder is the trainer's to "
                "say (ElasticTrainer(run=..., storage=...)). Leave it out here"
            )
        return _in_ray(leave_margin_s)
    if storage is None:
        raise TrainError(
            "no folder for this run: outside Ray Train give one, such as "
            "start_run(storage='s3://bucket/runs/mine') or storage='/tmp/runs/mine'"
        )
    watcher = NoticeWatcher(notices or (lambda: None))
    here = dist.is_initialized()
    place = Place(rank=dist.get_rank() if here else 0, world=dist.get_world_size() if here else 1)
    # every step asks: there is no thread that could be late
    agreement = Agreement(watcher, clock=time.time, margin_s=leave_margin_s, poll_every_steps=1)
    return Surroundings(
        membership=Membership(place, agreement),
        folder=ObjectStore.open(storage),
        report=lambda metrics, saved: None,
        leave=_leave_alone,
        publish=lambda progress: None,
    )


def is_ray_worker() -> bool:
    """Whether this process is one of Ray Train's. A trial of Ray Tune is not."""
    if "ray.train" not in sys.modules:
        return False
    import ray.train

    try:
        ray.train.get_context().get_world_rank()
    except (RuntimeError, DeprecationWarning):  # public API for "not in a worker", "in a trial"
        return False
    return True


def _in_ray(leave_margin_s: float) -> Surroundings:
    import ray.train

    from rayburst.checkpoint.ray_train import checkpoints_uri

    return Surroundings(
        membership=Membership.open(leave_margin_s=leave_margin_s),
        folder=ObjectStore.open(checkpoints_uri().removesuffix("/checkpoints")),
        report=_report_to_ray,
        leave=losses.leave,
        publish=_publisher(),
        peer=RayPeer(ray.train.get_context().get_experiment_name()),
    )


def _report_to_ray(metrics: Mapping[str, Any], saved: Saved | None) -> None:
    """Every rank; Ray learns of a committed checkpoint, or of the metrics alone."""
    import ray.train

    from rayburst.checkpoint.ray_train import report

    if saved is None:
        ray.train.report(dict(metrics))
        return
    try:
        report(metrics, saved)
    except OSError as error:  # before Ray's barrier: the others wait in it
        _logger.warning("Ray Train does not learn of step %d: %s", saved.step, error)
        ray.train.report(dict(metrics))


def _publisher() -> Callable[[bytes], None]:
    if not is_tested_ray():
        return lambda progress: None
    import ray.train

    from rayburst.train import _ray_hooks as hooks

    key = hooks.progress_key(ray.train.get_context().get_experiment_name())
    return lambda progress: hooks.kv_put(key, progress)


def _leave_alone(reason: str) -> NoReturn:
    raise RunLeftError(f"saved and left: {reason}. Start the run again to go on")
