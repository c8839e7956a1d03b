"""Checkpoints on an object store: verified, atomic, fast, reshardable.

    import rayburst.checkpoint as checkpoint

    checkpoint.save(state, "s3://models/run-7", step=100)
    checkpoint.load("s3://models/run-7", state)

`Checkpointer` is the object behind these calls; `ObjectStore` the client below them. Names are
loaded when used: the store alone needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rayburst.checkpoint.api import async_save, close_all, latest, list, load, save
    from rayburst.checkpoint.catalog import Listed
    from rayburst.checkpoint.checkpointer import (
        Checkpointer,
        FlushReport,
        Options,
        Saved,
        SaveHandle,
    )
    from rayburst.checkpoint.gc import Collected
    from rayburst.checkpoint.loading import Loaded
    from rayburst.checkpoint.retention import Best, Retention
    from rayburst.checkpoint.store import ObjectStore, StoreOptions

__all__ = [
    "Best",
    "Checkpointer",
    "Collected",
    "FlushReport",
    "Listed",
    "Loaded",
    "ObjectStore",
    "Options",
    "Retention",
    "SaveHandle",
    "Saved",
    "StoreOptions",
    "async_save",
    "close_all",
    "latest",
    "list",
    "load",
    "save",
]

_HOMES = {
    "Best": "retention",
    "Collected": "gc",
    "Checkpointer": "checkpointer",
    "FlushReport": "checkpointer",
    "Listed": "catalog",
    "Loaded": "loading",
    "ObjectStore": "store",
    "Options": "checkpointer",
    "Retention": "retention",
    "SaveHandle": "checkpointer",
    "Saved": "checkpointer",
    "StoreOptions": "store",
    "async_save": "api",
    "close_all": "api",
    "latest": "api",
    "list": "api",
    "load": "api",
    "save": "api",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
