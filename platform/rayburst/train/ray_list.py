"""Ray Train's own list of a run's checkpoints, kept usable.

Ray refuses to start with a list that is cut off, or that names a checkpoint that is gone, as a
power cut can leave it. Nothing is lost without the list: a run finds its checkpoints by their
manifests.
"""

from __future__ import annotations

import json

from rayburst.checkpoint.store import ObjectStore
from rayburst.errors import ObjectNotFoundError

__all__ = ["LIST", "mend_list"]

LIST = "checkpoint_manager_snapshot.json"


def mend_list(run: ObjectStore) -> str | None:
    """Move the list in a run's folder aside when Ray would refuse it; what was wrong, or None."""
    try:
        body = run.get(LIST)
    except ObjectNotFoundError:
        return None
    there = {item.key.split("/")[0] for item in run.list()}
    problem = _problem(body, there)
    if problem is not None:
        run.put(f"{LIST}.unusable", body)
        run.delete(LIST)
    return problem


def _problem(body: bytes, there: set[str]) -> str | None:
    try:
        results = json.loads(body)["checkpoint_results"]
        gone = [r["checkpoint_dir_name"] for r in results if r["checkpoint_dir_name"] not in there]
    except (ValueError, KeyError, TypeError):
        return "it is cut off or no list of checkpoints"
    return f"it lists {', '.join(gone)}, which is gone" if gone else None
