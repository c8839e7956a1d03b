"""rayburst's checkpoints under Ray Train: reported without an upload, and found again.

    uri = checkpoints_uri()                      # <the run's folder>/checkpoints, in a worker
    with Checkpointer(uri) as checkpoints:
        where = last_reported()                  # (uri, step) after a restart, or None
        ...
        saved = checkpoints.save(state, step=step)
        report({"loss": loss}, saved)            # every rank

Ray Train keeps a small folder per report in the run's folder, with `rayburst.json` in it: the URI
and the step. `CheckpointUploadMode.NO_UPLOAD` tells it that the bytes are on the store. What
`ray.train.get_checkpoint()` and `Result.checkpoint` give leads back by `where_of`. Ray Train may
delete that folder when it keeps fewer checkpoints; the checkpoint itself is our retention's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pyarrow.fs
import ray.train

from rayburst.checkpoint.checkpointer import Saved
from rayburst.errors import CheckpointError

__all__ = ["checkpoints_uri", "last_reported", "report", "where_of"]

POINTER = "rayburst.json"


def checkpoints_uri() -> str:
    """Where this run's checkpoints go: `checkpoints` in the run's folder. Call it in a worker."""
    storage: Any = ray.train.get_context().get_storage()
    kind = storage.storage_filesystem.type_name
    path = f"{storage.experiment_fs_path}/checkpoints"
    if kind == "local":
        return path
    schemes = {"s3": "s3", "gcs": "gs", "abfs": "az"}
    if kind not in schemes:
        raise CheckpointError(
            f"RunConfig(storage_path=…) is on {kind!r}. Allowed: a local folder, s3://, gs:// or "
            f"az://. Or give Checkpointer a URI of its own."
        )
    return f"{schemes[kind]}://{path}"


def report(metrics: Mapping[str, Any], saved: Saved) -> None:
    """`ray.train.report` with a committed checkpoint. Every rank calls it.

    Rank 0's folder is written before the report, and the report is a barrier: what Ray Train knows
    of is committed.
    """
    context = ray.train.get_context()
    storage: Any = context.get_storage()
    checkpoint = None
    if context.get_world_rank() == 0:
        folder = f"{storage.experiment_fs_path}/rayburst-{saved.step:012d}"
        files: pyarrow.fs.FileSystem = storage.storage_filesystem
        files.create_dir(folder, recursive=True)
        pointer = {"uri": saved.uri, "step": saved.step, "sha256": saved.sha256}
        with files.open_output_stream(f"{folder}/{POINTER}") as stream:
            stream.write(json.dumps(pointer).encode())
        checkpoint = ray.train.Checkpoint(path=folder, filesystem=files)
    ray.train.report(
        dict(metrics),
        checkpoint=checkpoint,
        checkpoint_upload_mode=ray.train.CheckpointUploadMode.NO_UPLOAD,
    )


def where_of(checkpoint: Any) -> tuple[str, int]:
    """(URI, step) of a checkpoint that `report` reported. CheckpointError for any other."""
    try:
        with checkpoint.filesystem.open_input_stream(f"{checkpoint.path}/{POINTER}") as stream:
            found = json.loads(stream.read())
    except FileNotFoundError:
        raise CheckpointError(
            f"{checkpoint.path} was not reported by rayburst.checkpoint.ray_train.report: it has "
            f"no {POINTER}"
        ) from None
    return str(found["uri"]), int(found["step"])


def last_reported() -> tuple[str, int] | None:
    """(URI, step) that this run reported last, after a restart; None at the first start."""
    checkpoint = ray.train.get_checkpoint()
    return None if checkpoint is None else where_of(checkpoint)
