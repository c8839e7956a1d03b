"""Which checkpoint to serve: the one asked for, else RAYBURST_MODEL, else the newest.

The environment is handed in; nothing here loads a model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from rayburst.checkpoint.store import ObjectStore
from rayburst.errors import CheckpointError
from rayburst.train.checkpoints import newest

__all__ = ["locate"]

# A checkpoint's meta data under runs/; its folder's name ends in the time it was taken.
_META = re.compile(r"(?P<run>[^/]+)/checkpoint_\d+_(?P<taken_ms>\d+)/meta\.json")
_HOW = "pass checkpoint=s3://bucket/runs/<run>, or set RAYBURST_MODEL to such an address"


def locate(checkpoint: str | None, environ: Mapping[str, str]) -> str:
    """The URI of the checkpoint to serve: a checkpoint's folder or a run's.

    CheckpointError when none is named and the fleet's store holds none.
    """
    asked = checkpoint or environ.get("RAYBURST_MODEL")
    if asked:
        return asked
    root = environ.get("RAYBURST_STORE")
    if not root:
        raise CheckpointError(
            f"no model is named and RAYBURST_STORE is not set, so none can be found: {_HOW}"
        )
    return _newest(f"{root.rstrip('/')}/runs")


def _newest(runs_uri: str) -> str:
    """The newest complete checkpoint of the run that saved one last."""
    runs = ObjectStore.open(runs_uri)
    saved: dict[str, int] = {}
    for item in runs.list():
        match = _META.fullmatch(item.key)
        if match:
            saved[match["run"]] = max(saved.get(match["run"], 0), int(match["taken_ms"]))
    for run in sorted(saved, key=lambda run: saved[run], reverse=True):
        name = newest(runs.child(run))
        if name is not None:
            return f"{runs_uri}/{run}/{name}"
    raise CheckpointError(
        f"{runs_uri} holds no complete checkpoint: train one with "
        f"`ray job submit -- python jobs/train_lm.py`, or {_HOW}"
    )
