"""The five calls of rayburst.checkpoint: save, async_save, load, latest, list.

    import rayburst.checkpoint as checkpoint

    checkpoint.save({"model": model.state_dict()}, "s3://models/run-7", step=100)
    found = checkpoint.load("s3://models/run-7", {"model": model.state_dict()})
    checkpoint.latest("s3://models/run-7")          # 100

They keep one Checkpointer per URI in this process, so buffers, plans and the knowledge of what is
already stored are reused. In a distributed job all ranks call them in the same order.
"""

from __future__ import annotations

import atexit
import builtins
import threading
from collections.abc import Mapping
from typing import Any

from rayburst.checkpoint.catalog import Listed, newest_step, steps
from rayburst.checkpoint.checkpointer import Checkpointer, Saved, SaveHandle, WhenBusy
from rayburst.checkpoint.loading import Loaded
from rayburst.checkpoint.store import ObjectStore

__all__ = ["async_save", "close_all", "latest", "list", "load", "save"]

_open: dict[str, Checkpointer] = {}
_lock = threading.Lock()


def _checkpointer(uri: str) -> Checkpointer:
    with _lock:
        if uri not in _open:
            if not _open:
                atexit.register(close_all)
            _open[uri] = Checkpointer(uri)
        return _open[uri]


def close_all() -> None:
    """Wait for saves under way and give back what the calls of this module keep."""
    with _lock:
        for checkpointer in _open.values():
            checkpointer.close()
        _open.clear()


def save(state: Mapping[Any, Any], uri: str, *, step: int, **about: Any) -> Saved:
    """Save `state` as `step` below `uri`; returns when it is committed.

    `about`: data, rng, config, metrics; see `Checkpointer.async_save`. CheckpointExistsError if
    the step is there already.
    """
    return _checkpointer(uri).save(state, step=step, **about)


def async_save(
    state: Mapping[Any, Any],
    uri: str,
    *,
    step: int,
    when_busy: WhenBusy = "wait",
    **about: Any,
) -> SaveHandle:
    """Copy `state` to host memory and return; the handle tells when it is committed."""
    return _checkpointer(uri).async_save(state, step=step, when_busy=when_busy, **about)


def load(
    uri: str,
    state: dict[Any, Any] | None = None,
    *,
    step: int | None = None,
    fallback: bool = False,
    unpickle: bool = False,
) -> Loaded:
    """Load the newest checkpoint below `uri`, or `step`, into `state` or as plain tensors."""
    return _checkpointer(uri).load(state, step=step, fallback=fallback, unpickle=unpickle)


def latest(uri: str) -> int | None:
    """The newest committed step below `uri`; None where there is none."""
    return newest_step(ObjectStore.open(uri))


def list(uri: str) -> builtins.list[Listed]:
    """Committed steps below `uri`, oldest first."""
    return steps(ObjectStore.open(uri))
