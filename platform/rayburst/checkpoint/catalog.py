"""Which checkpoints there are, and whether they are whole.

A checkpoint is listed by its manifest alone. The newest one is the higher of what the list says
and what latest.json says, so a store whose lists lag behind its writes hides nothing that was
acknowledged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime

from rayburst.checkpoint.manifest import Manifest
from rayburst.checkpoint.protocol import MANIFESTS, manifest_key, step_of
from rayburst.checkpoint.session import hinted
from rayburst.checkpoint.store import ObjectStore
from rayburst.errors import (
    CheckpointDamagedError,
    CheckpointNotFoundError,
    ObjectNotFoundError,
)

__all__ = ["Listed", "newest_step", "read_manifest", "steps", "whole_manifests"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Listed:
    """A committed step and when its manifest was written, by the store's clock."""

    step: int
    modified: datetime
    manifest_bytes: int


def steps(store: ObjectStore) -> list[Listed]:
    """Committed steps, oldest first."""
    found = []
    for info in store.list(MANIFESTS):
        step = step_of(info.key)
        if step is not None:
            found.append(Listed(step=step, modified=info.modified, manifest_bytes=info.size_bytes))
    return sorted(found, key=lambda listed: listed.step)


def step_numbers(store: ObjectStore) -> list[int]:
    """Committed steps, newest first, with the hint where a list lags behind."""
    numbers = {listed.step for listed in steps(store)}
    hint = hinted(store)
    if hint is not None and hint not in numbers and store.exists(manifest_key(hint)):
        numbers.add(hint)
    return sorted(numbers, reverse=True)


def newest_step(store: ObjectStore) -> int | None:
    """The highest committed step; None where there is none."""
    numbers = step_numbers(store)
    return numbers[0] if numbers else None


def read_manifest(store: ObjectStore, step: int | None = None) -> Manifest:
    """The proven manifest of `step`, or of the newest step.

    CheckpointNotFoundError, CheckpointDamagedError.
    """
    if step is None:
        step = newest_step(store)
        if step is None:
            raise CheckpointNotFoundError(f"{store.uri}: no checkpoint here")
    data = manifest_bytes(store, step)
    return Manifest.decode(f"{store.uri}/{manifest_key(step)}", data, step=step)


def manifest_bytes(store: ObjectStore, step: int) -> memoryview:
    """The manifest of `step` as it is stored, not proven. CheckpointNotFoundError."""
    try:
        return store.get_buffer(manifest_key(step))
    except ObjectNotFoundError:
        known = ", ".join(str(n) for n in step_numbers(store)[:5]) or "none"
        raise CheckpointNotFoundError(
            f"{store.uri}: no checkpoint of step {step}. Newest here: {known}. Ask for one of "
            f"these, or for no step to get the newest."
        ) from None


def whole_manifests(
    store: ObjectStore, on_damage: Callable[[int, CheckpointDamagedError], None]
) -> Iterator[Manifest]:
    """Readable manifests, newest first; damaged ones are reported and passed over."""
    for step in step_numbers(store):
        try:
            yield read_manifest(store, step)
        except CheckpointNotFoundError:
            continue  # removed by retention since the list
        except CheckpointDamagedError as error:
            on_damage(step, error)
