"""Which checkpoint to serve: the one asked for, else RAYBURST_MODEL, else the newest.

The environment is handed in; nothing here loads a model.
"""

from __future__ import annotations

from collections.abc import Mapping

from rayburst.checkpoint.store import ObjectStore
from rayburst.errors import CheckpointError
from rayburst.train.trained import newest_address

__all__ = ["locate"]

_HOW = "pass checkpoint=s3://bucket/runs/<run>, or set RAYBURST_MODEL to such an address"


def locate(checkpoint: str | None, environ: Mapping[str, str]) -> str:
    """The address of the checkpoint to serve: a run's folder, or one of its steps (`@300`).

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
    """The newest whole checkpoint of the run that saved one last."""
    found = newest_address(ObjectStore.open(runs_uri))
    if found is None:
        raise CheckpointError(
            f"{runs_uri} holds no whole checkpoint: train one with "
            f"`ray job submit -- python jobs/train_lm.py`, or {_HOW}"
        )
    return found
