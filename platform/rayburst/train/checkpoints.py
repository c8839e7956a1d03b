"""Checkpoints of `jobs/train_lm.py`: how they are written, found, read and judged complete.

    model, meta = load_model("s3://bucket/runs/mine")                  # the newest complete one
    model, meta = load_model("s3://bucket/runs/mine/checkpoint_00000300_1760000000000")

A checkpoint is a folder below the run's folder with `model.pt` (weights, optimizer, random state)
and `meta.json`. `meta.json` is written last and names size and digest of `model.pt`: a folder
without it, or whose `model.pt` does not match it, is no checkpoint and is passed over. The folder's
name holds the step and the time in milliseconds, so that no two are the same and the greatest name
is the newest.

Ray Train keeps a list of its own (`checkpoint_manager_snapshot.json`). It is not needed to find a
checkpoint here; `mend_snapshot` and `orphans` keep the two in step.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterable
from typing import Any

import torch

from rayburst.checkpoint.store import ObjectStore
from rayburst.errors import CheckpointError, ObjectNotFoundError
from rayburst.train.gpt import GPT, GPTConfig

__all__ = ["checkpoint_name", "load_model", "mend_snapshot", "newest", "orphans", "read", "save"]

META = "meta.json"
MODEL = "model.pt"
SNAPSHOT = "checkpoint_manager_snapshot.json"
_NAME = re.compile(r"checkpoint_(\d{8,})_(\d{13,})")


def checkpoint_name(step: int, time_s: float) -> str:
    """The folder of a checkpoint taken after `step` at unix time `time_s`."""
    return f"checkpoint_{step:08}_{int(time_s * 1000):013}"


def save(store: ObjectStore, name: str, state: dict[str, Any], meta: dict[str, Any]) -> str:
    """Write a checkpoint into the run's folder `store` and return its URI.

    StoreError when the store refuses; what was written until then is no checkpoint.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    body = buffer.getbuffer()
    files = {MODEL: {"size_bytes": body.nbytes, "blake2b": _digest(body)}}
    store.put(f"{name}/{MODEL}", body)
    store.put(f"{name}/{META}", json.dumps({**meta, "files": files}, indent=1).encode())
    return f"{store.uri}/{name}"


def newest(store: ObjectStore) -> str | None:
    """Name of the newest complete checkpoint in the run's folder, or None when there is none."""
    sizes = {item.key: item.size_bytes for item in store.list()}
    names = {key.split("/")[0] for key in sizes if key.endswith(f"/{META}")}
    for name in sorted(filter(_NAME.fullmatch, names), reverse=True):
        try:
            meta = _parse(store.get(f"{name}/{META}"))
        except ObjectNotFoundError:  # deleted since it was listed
            continue
        if meta is not None and sizes.get(f"{name}/{MODEL}") == _expected(meta)["size_bytes"]:
            return name
    return None


def read(store: ObjectStore, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """State and meta of a checkpoint in the run's folder; CheckpointError when it is damaged."""
    return _read(store.child(name))


def load_model(uri: str) -> tuple[GPT, dict[str, Any]]:
    """The model at `uri` (a checkpoint, or a run's folder: its newest one) and its meta data.

    The model is on the CPU and in evaluation mode. CheckpointError when there is no complete
    checkpoint or its bytes are damaged, StoreError when the store cannot be reached.
    """
    store = ObjectStore.open(uri.rstrip("/"))
    if not store.exists(META):
        if store.exists(MODEL):
            raise CheckpointError(
                f"{store.uri} is only half written: {MODEL} is there and {META} is not. "
                f"Name the run's folder to load its newest complete checkpoint: {_parent(uri)}"
            )
        name = newest(store)
        if name is None:
            raise CheckpointError(
                f"no complete checkpoint at {store.uri}. Give a run's folder or one of its "
                "checkpoints, for example s3://bucket/runs/NAME"
            )
        store = store.child(name)
    state, meta = _read(store)
    try:
        model = GPT(GPTConfig(**meta["config"]))
        model.load_state_dict(state["model"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{store.uri} does not hold a byte-level GPT: {error}") from error
    return model.eval(), {**meta, "uri": store.uri}


def mend_snapshot(store: ObjectStore) -> str | None:
    """Move Ray Train's list of checkpoints aside when Ray would refuse to start with it.

    That is when it is cut off, or lists a checkpoint that is gone. Returns what was wrong, or None.
    No checkpoint is lost: `newest` does not need the list.
    """
    try:
        body = store.get(SNAPSHOT)
    except ObjectNotFoundError:
        return None
    there = {item.key.split("/")[0] for item in store.list()}
    problem = _snapshot_problem(body, there)
    if problem is not None:
        store.put(f"{SNAPSHOT}.unusable", body)
        store.delete(SNAPSHOT)
    return problem


def orphans(store: ObjectStore, keep: str) -> list[str]:
    """Checkpoint folders older than `keep` that Ray Train does not list, so never deletes.

    They come from a save that was interrupted before Ray heard of it.
    """
    try:
        listed = store.get(SNAPSHOT).decode(errors="replace")
    except ObjectNotFoundError:
        listed = ""
    names = {item.key.split("/")[0] for item in store.list()}
    return sorted(n for n in names if _NAME.fullmatch(n) and n < keep and n not in listed)


def delete(store: ObjectStore, names: Iterable[str]) -> None:
    """Delete checkpoint folders, `meta.json` first: what is left half-way is no checkpoint."""
    for name in names:
        store.delete(f"{name}/{META}")
        store.delete(f"{name}/{MODEL}")


def _read(store: ObjectStore) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        meta = _parse(store.get(META))
        if meta is None:
            raise CheckpointError(f"{store.uri}/{META} is damaged: it is no checkpoint's meta data")
        body = store.get_buffer(MODEL)
    except ObjectNotFoundError as error:
        raise CheckpointError(
            f"no complete checkpoint at {store.uri}: it was deleted, or never finished"
        ) from error
    expected = _expected(meta)
    if body.nbytes != expected["size_bytes"] or _digest(body) != expected["blake2b"]:
        raise CheckpointError(
            f"{store.uri}/{MODEL} is damaged: {body.nbytes} bytes that do not match the digest in "
            f"{META}. Load another checkpoint of the run, or {_parent(store.uri)}"
        )
    state: dict[str, Any] = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
    return state, meta


def _parse(body: bytes) -> dict[str, Any] | None:
    try:
        meta = json.loads(body)
        return meta if _expected(meta)["size_bytes"] >= 0 and "step" in meta else None
    except (ValueError, KeyError, TypeError):
        return None


def _expected(meta: dict[str, Any]) -> dict[str, Any]:
    expected: dict[str, Any] = meta["files"][MODEL]
    return expected


def _snapshot_problem(body: bytes, there: set[str]) -> str | None:
    try:
        results = json.loads(body)["checkpoint_results"]
        gone = [r["checkpoint_dir_name"] for r in results if r["checkpoint_dir_name"] not in there]
    except (ValueError, KeyError, TypeError):
        return "it is cut off or no list of checkpoints"
    return f"it lists {', '.join(gone)}, which is gone" if gone else None


def _digest(body: memoryview) -> str:
    return hashlib.blake2b(body, digest_size=32).hexdigest()


def _parent(uri: str) -> str:
    return uri.rstrip("/").rsplit("/", 1)[0]
