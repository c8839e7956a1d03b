"""The language model of a run: found by its address, proven by digests, loaded to be served.

    model, meta = load_model("s3://bucket/runs/mine")              # the newest whole checkpoint
    model, meta = load_model("s3://bucket/runs/mine@300")          # that of step 300

A run's folder holds `checkpoints` (docs/checkpoint-format.md) and the run log. An address may name
the run's folder, or that of its checkpoints; `@step` picks one.
"""

from __future__ import annotations

import re
from typing import Any

from rayburst.checkpoint.catalog import read_manifest, whole_manifests
from rayburst.checkpoint.checkpointer import Checkpointer
from rayburst.checkpoint.manifest import Manifest
from rayburst.checkpoint.protocol import step_of
from rayburst.checkpoint.store import ObjectStore
from rayburst.errors import CheckpointDamagedError, CheckpointError
from rayburst.train.gpt import GPT, GPTConfig
from rayburst.train.keeper import FOLDER

__all__ = [
    "address",
    "load_checkpoint",
    "load_model",
    "newest_address",
    "newest_manifest",
    "run_and_step",
]

_TIED = "head.weight"  # the token embedding's
_STEP = re.compile(r"(?P<run>.+)@(?P<step>\d+)")


def address(run_uri: str, step: int) -> str:
    """How a checkpoint is named."""
    return f"{run_uri.rstrip('/')}@{step}"


def newest_manifest(run: ObjectStore) -> Manifest | None:
    """Of the newest checkpoint in a run's folder whose manifest is whole; None: there is none."""
    return next(whole_manifests(run.child(FOLDER), lambda step, error: None), None)


def newest_address(runs: ObjectStore) -> str | None:
    """The newest checkpoint of the run, in the folder of all runs, that saved one last."""
    saved: dict[str, Any] = {}
    for item in runs.list():
        run, inside, key = item.key.partition(f"/{FOLDER}/")
        if inside and "/" not in run and step_of(key) is not None:
            saved[run] = max(saved.get(run, item.modified), item.modified)
    for run in sorted(saved, key=lambda run: saved[run], reverse=True):
        found = newest_manifest(runs.child(run))
        if found is not None:
            return address(f"{runs.uri}/{run}", found.step)
    return None


def load_model(uri: str) -> tuple[GPT, dict[str, Any]]:
    """The model at `uri`, on the CPU and in evaluation mode, and how it was made.

    CheckpointError when there is no whole checkpoint there, or one of another kind of model;
    StoreError when the store cannot be reached.
    """
    run_uri, step = run_and_step(uri)
    run = ObjectStore.open(run_uri)
    model, manifest = load_checkpoint(run, step)
    return model, _meta(run.uri, manifest)


def run_and_step(uri: str) -> tuple[str, int | None]:
    """The folder of the run that an address names, and the step, if it names one."""
    match = _STEP.fullmatch(uri)
    run_uri = (match["run"] if match else uri).rstrip("/").removesuffix(f"/{FOLDER}")
    return run_uri, int(match["step"]) if match else None


def load_checkpoint(run: ObjectStore, step: int | None = None) -> tuple[GPT, Manifest]:
    """The model of a step of the run in this folder, or of its newest whole checkpoint."""
    store = run.child(FOLDER)
    if step is not None:
        manifest = read_manifest(store, step)
        return _load(store, manifest), manifest
    for manifest in whole_manifests(store, lambda step, error: None):
        try:
            return _load(store, manifest), manifest
        except CheckpointDamagedError:
            continue  # the one before it may be whole
    raise CheckpointError(
        f"no whole checkpoint at {run.uri}. Give a run's folder, for example "
        f"s3://bucket/runs/NAME, or one of its steps, s3://bucket/runs/NAME@300"
    )


def _load(store: ObjectStore, manifest: Manifest) -> GPT:
    try:
        model = GPT(GPTConfig(**manifest.about["config"]["user"]["model"]))
        weights = model.state_dict()
        if f"model.{_TIED}" not in manifest.tensors:
            del weights[_TIED]  # a run in a layout saves a shared weight once
        with Checkpointer(store) as checkpoints:
            checkpoints.load({"model": weights}, step=manifest.step)
    except CheckpointDamagedError:
        raise
    except (CheckpointError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{store.uri}, step {manifest.step}, does not hold a byte-level GPT: {error}"
        ) from error
    return model.eval()


def _meta(run_uri: str, manifest: Manifest) -> dict[str, Any]:
    """The words of a checkpoint, flat: what a served model says of itself."""
    config = manifest.about["config"]
    return {
        "uri": address(run_uri, manifest.step),
        "run": config["run"],
        "step": manifest.step,
        "config": config["user"]["model"],
        "data": manifest.about["data"],
        **(manifest.about.get("metrics") or {}),
    }
