"""Loading: into a given state of any layout, or as plain tensors; with a fallback when asked.

`fallback=True` tries older checkpoints, newest first, when one is damaged, and says what it
passed over. A damaged checkpoint is never loaded in part without an error: the state given to a
refused load must not be used.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import Metadata

from rayburst.checkpoint.catalog import read_manifest, step_numbers
from rayburst.checkpoint.chunks import digest_of
from rayburst.checkpoint.fetch import fetch
from rayburst.checkpoint.group import Group
from rayburst.checkpoint.manifest import Manifest, StoredTensor
from rayburst.checkpoint.planner import StateLoadPlanner
from rayburst.checkpoint.reader import CheckpointReader, read_state, tensor_wants
from rayburst.checkpoint.store import ObjectStore
from rayburst.checkpoint.tree import flatten
from rayburst.errors import CheckpointDamagedError, CheckpointNotFoundError

__all__ = ["Loaded", "load_checkpoint"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Loaded:
    """A loaded checkpoint. `about` holds data position, rng, config and the rest of its words."""

    step: int
    state: dict[Any, Any]
    manifest: Manifest
    refused: tuple[str, ...] = field(default=())

    @property
    def data(self) -> Any:
        """The data position that was saved."""
        return self.manifest.about.get("data")

    @property
    def config(self) -> Any:
        """The config that was saved."""
        return self.manifest.about.get("config")

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics that were saved."""
        return dict(self.manifest.about.get("metrics") or {})

    def rng(self, rank: int = 0) -> Any:
        """The random state that this rank saved; None where there was no such rank."""
        return (self.manifest.about.get("rng") or {}).get(str(rank))


def load_checkpoint(
    store: ObjectStore,
    state: dict[Any, Any] | None,
    step: int | None,
    *,
    group: Group,
    fallback: bool,
    unpickle: bool,
) -> Loaded:
    """Load `step` (None: the newest) into `state` in place, or as plain tensors (None).

    All ranks of the group take part and load the same step. CheckpointNotFoundError,
    CheckpointDamagedError; CheckpointError where the state does not fit.
    """
    refused: list[str] = []
    candidates = group.rank0(lambda: _candidates(store, step, fallback))
    for number in candidates:
        try:
            loaded = _load_one(store, state, number, group, unpickle)
        except (CheckpointDamagedError, CheckpointNotFoundError) as error:
            if not fallback or number == candidates[-1]:
                raise
            refused.append(str(error))
            continue
        return Loaded(step=number, state=loaded[0], manifest=loaded[1], refused=tuple(refused))
    raise CheckpointNotFoundError(f"{store.uri}: no checkpoint here")


def _candidates(store: ObjectStore, step: int | None, fallback: bool) -> list[int]:
    numbers = step_numbers(store)
    if step is None:
        return numbers if fallback else numbers[:1]
    return [step, *(n for n in numbers if n < step)] if fallback else [step]


def _load_one(
    store: ObjectStore,
    state: dict[Any, Any] | None,
    step: int,
    group: Group,
    unpickle: bool,
) -> tuple[dict[Any, Any], Manifest]:
    found: list[tuple[dict[Any, Any], Manifest]] = []

    def action() -> None:
        manifest = read_manifest(store, step)
        if state is None:
            found.append((read_state(store, manifest, unpickle=unpickle), manifest))
        else:
            _fill(store, state, manifest, unpickle)
            found.append((state, manifest))

    group.together(action)
    return found[0]


def _fill(store: ObjectStore, state: dict[Any, Any], manifest: Manifest, unpickle: bool) -> None:
    leaves, _ = flatten(state)
    whole = {n: v for n, v in leaves.items() if _takes_all(v, manifest.tensors.get(n))}
    fetch(store, digest_of(manifest.digest), tensor_wants(manifest, whole))
    if len(whole) == len(leaves):
        return
    # DCP's load plan needs no talk between ranks: each reads what its own boxes need
    reader = CheckpointReader(store, manifest=manifest)
    planner = StateLoadPlanner(unpickle=unpickle, filled=whole.keys())
    metadata: Metadata = reader.read_metadata()
    planner.set_up_planner(state, metadata, is_coordinator=True)
    reader.set_up_storage_reader(metadata, True)
    plan = planner.finish_plan(planner.create_local_plan())
    reader.read_data(plan, planner).wait()


def _takes_all(value: Any, stored: StoredTensor | None) -> bool:
    """A plain tensor that takes the stored one whole: no plan is needed for it."""
    if stored is None or type(value) not in (torch.Tensor, torch.nn.Parameter):
        return False
    return value.shape == stored.shape and str(value.dtype)[6:] == stored.dtype
