"""Which checkpoint to serve: the one asked for, else RAYBURST_MODEL, else the newest.

The environment is handed in; nothing here loads a model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from rayburst.checkpoint.store import ObjectStore
from rayburst.errors import CheckpointError

__all__ = ["locate"]

_FILE = re.compile(r"(?P<checkpoint>[^/]+/checkpoint_[^/]+)/(?P<file>meta\.json|model\.pt)")
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
    """The checkpoint under `runs_uri` that was completed last."""
    found: dict[str, dict[str, float]] = {}
    for item in ObjectStore.open(runs_uri).list():
        match = _FILE.fullmatch(item.key)
        if match:
            files = found.setdefault(match["checkpoint"], {})
            files[match["file"]] = item.modified.timestamp()
    # An object is there only once it is whole, so both files make a complete checkpoint.
    complete = {name: max(files.values()) for name, files in found.items() if len(files) == 2}
    if not complete:
        raise CheckpointError(
            f"{runs_uri} holds no complete checkpoint: train one with "
            f"`ray job submit -- python jobs/train_lm.py`, or {_HOW}"
        )
    newest = max(complete, key=lambda name: (complete[name], name))
    return f"{runs_uri}/{newest}"
