"""Telling the loss of a machine from a mistake of the user, and bounding both.

PURE apart from `leave` and `surviving`, which run in a Ray Train worker. When a machine dies, the
ranks that are left fail in their next collective: those errors name a broken connection, and
restarting helps. Anything else that a training function raises is the user's and ends the run with
its traceback.

A process that dies over and over (out of memory at the first step, a crash in native code) looks
like a lost machine each time; `LossBudget` gives up on it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, NoReturn

from rayburst.train.versions import is_tested_ray, keep_to_public_api

__all__ = [
    "LossBudget",
    "LossOptions",
    "are_losses",
    "is_peer_loss",
    "is_planned",
    "leave",
    "surviving",
    "watch_group",
]

_PLANNED = "rayburst: this rank saved and left"
_TYPES = ("DistBackendError", "DistNetworkError", "DistStoreError", "PeerLostError")
_TEXTS = (
    "connection closed by peer",
    "connection reset by peer",
    "connection refused",
    "broken pipe",
    "socket closed",
    "timed out waiting",
)
_GLOO_ALONE = "application timeout caused pair closure"
"""gloo says this, without its name, to whoever waits beside an operation that timed out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LossOptions:
    """How often in a row a group may be lost soon after it started."""

    rapid_losses: int = 6
    rapid_within_s: float = 60.0

    def __post_init__(self) -> None:
        if self.rapid_losses < 0 or self.rapid_within_s <= 0:
            raise ValueError(
                f"LossOptions(rapid_losses={self.rapid_losses}, rapid_within_s="
                f"{self.rapid_within_s:g}): give 0 losses or more, and seconds above 0"
            )


class LossBudget:
    """Counts losses that follow each other quickly; `spend` says whether to try again.

    `forgive`: training has gone on since the last one.
    """

    def __init__(self, options: LossOptions) -> None:
        self._options = options
        self._last_s = float("-inf")
        self._in_a_row = 0

    def spend(self, now_s: float) -> bool:
        """Note a loss at `now_s`. False when too many came in a row."""
        quick = now_s - self._last_s < self._options.rapid_within_s
        self._in_a_row = self._in_a_row + 1 if quick else 1
        self._last_s = now_s
        return self._in_a_row <= self._options.rapid_losses

    def forgive(self) -> None:
        """Begin to count anew."""
        self._in_a_row = 0


def is_peer_loss(error: BaseException) -> bool:
    """Whether `error`, or what caused it, is a broken connection inside a collective.

    NCCL errors have types of their own; gloo raises RuntimeError with the socket's message.
    """
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        if type(current).__name__ in _TYPES:
            return True
        text = str(current).lower()
        if isinstance(current, RuntimeError) and _GLOO_ALONE in text:
            return True
        from_collective = "gloo" in text or "nccl" in text or "process group" in text
        if isinstance(current, RuntimeError) and from_collective:
            return any(words in text for words in _TEXTS)
        current = current.__cause__ or current.__context__
    return False


def are_losses(failures: Collection[BaseException]) -> bool:
    """Whether what ended a group is the loss of its workers and nothing else, by what `fit` raised.

    Ray wraps the error of a worker that does not answer; a wrapper that is not known is no loss.
    """
    from ray.exceptions import OutOfMemoryError, RayActorError

    causes = [getattr(failure, "health_check_failure", failure) for failure in failures]
    return bool(causes) and all(isinstance(c, RayActorError | OutOfMemoryError) for c in causes)


def is_planned(error: BaseException) -> bool:
    """Whether a rank left by itself after saving, rather than because a peer was lost."""
    return _PLANNED in str(error)


def leave(reason: str, cause: BaseException | None = None) -> NoReturn:
    """End this rank so that Ray Train restarts the group and charges it to preemption.

    Every rank must leave: a normal return counts as success. Always raises RayActorError. Without
    a `cause` it counts as planned.
    """
    from ray.exceptions import RayActorError

    if is_tested_ray():
        from rayburst.train._ray_hooks import hush_leaving

        hush_leaving()
    message = reason if cause else f"{_PLANNED}: {reason}"
    raise RayActorError(error_msg=message, preempted=True) from cause


_is_aborted: list[Callable[[], bool]] = [lambda: False]


def watch_group(is_aborted: Callable[[], bool]) -> None:
    """In this process: a RuntimeError is no mistake while `is_aborted` says so.

    Of a group that was broken here, because a member is lost, torch says many things, and a
    training function may have collectives of its own.
    """
    _is_aborted[:] = [is_aborted]


def surviving(
    train_fn: Callable[..., Any], *, public_api_alone: bool = False
) -> Callable[..., Any]:
    """`train_fn` that leaves when a peer is lost; every other error passes through untouched."""

    @functools.wraps(train_fn)
    def run(*args: Any) -> Any:
        if public_api_alone:
            keep_to_public_api()
        try:
            return train_fn(*args)
        except Exception as error:
            from_abort = isinstance(error, RuntimeError) and _is_aborted[0]()
            if from_abort or is_peer_loss(error):
                leave(f"a peer of this rank was lost: {error}", error)
            raise

    return run
