"""Loading: into a given state of any layout, or as plain tensors; with a fallback when asked.

`fallback=True` tries older checkpoints, newest first, when one is damaged, and says what it
passed over. A damaged checkpoint is never loaded in part without an error: the state given to a
refused load must not be used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch.distributed.checkpoint.metadata import Metadata

from rayburst.checkpoint.catalog import manifest_bytes, step_numbers
from rayburst.checkpoint.chunks import digest_of
from rayburst.checkpoint.delivery import Want
from rayburst.checkpoint.garbage import garbage_pause
from rayburst.checkpoint.group import Group
from rayburst.checkpoint.manifest import Manifest
from rayburst.checkpoint.planner import StateLoadPlanner
from rayburst.checkpoint.protocol import manifest_key, step_of
from rayburst.checkpoint.reader import CheckpointReader, state_wants, tensor_wants
from rayburst.checkpoint.sharing import NodeReaders
from rayburst.checkpoint.store import ObjectStore
from rayburst.checkpoint.tree import flatten
from rayburst.errors import CheckpointDamagedError, CheckpointNotFoundError, StoreError

__all__ = ["Loaded", "Ranks", "load_checkpoint"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Loaded:
    """A loaded checkpoint. `about` holds data position, rng, config and the rest of its words."""

    step: int
    state: dict[Any, Any]
    manifest: Manifest
    refused: tuple[str, ...] = field(default=())
    committed: bool = True  # False: it was whole in a peer's memory and is not on the store

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


class Ranks:
    """The ranks that load together, and those of them on this machine."""

    def __init__(self, group: Group) -> None:
        self.group = group
        self._node: NodeReaders | None = None

    def node(self) -> NodeReaders:
        """Made at the first load, which is collective as its making is."""
        if self._node is None:
            self._node = NodeReaders(self.group)
        return self._node

    def close(self) -> None:
        """Leave the group of the machine."""
        if self._node is not None:
            self._node.close()


def load_checkpoint(
    store: ObjectStore,
    state: dict[Any, Any] | None,
    step: int | None,
    *,
    ranks: Ranks,
    fallback: bool,
    unpickle: bool,
) -> Loaded:
    """Load `step` (None: the newest) into `state` in place, or as plain tensors (None).

    All ranks of the group take part and load the same step. CheckpointNotFoundError,
    CheckpointDamagedError; CheckpointError where the state does not fit.
    """
    refused: list[str] = []
    candidates, first = ranks.group.rank0(lambda: _found(store, step, fallback))
    for candidate in candidates:
        try:
            if first is None:
                first = ranks.group.rank0(partial(_manifest_of, store, candidate))
            data, first = first, None
            loaded = _load_one(store, state, candidate, data, ranks, unpickle)
        except (CheckpointDamagedError, CheckpointNotFoundError) as error:
            if not fallback or candidate is candidates[-1]:
                raise
            refused.append(str(error))
            continue
        return Loaded(
            step=candidate.step,
            state=loaded[0],
            manifest=loaded[1],
            refused=tuple(refused),
            committed=candidate.held is None,
        )
    raise CheckpointNotFoundError(f"{store.uri}: no checkpoint here")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Candidate:
    """A step to try; `held` is its manifest where only a peer has it."""

    step: int
    held: bytes | None = None


def _found(
    store: ObjectStore, step: int | None, fallback: bool
) -> tuple[list[_Candidate], bytes | None]:
    """What may be loaded, best first, and the manifest of the best where it could be read."""
    candidates = _candidates(store, step, fallback)
    if not candidates:
        return [], None
    try:
        return candidates, _manifest_of(store, candidates[0])
    except (CheckpointDamagedError, CheckpointNotFoundError):
        return candidates, None


def _manifest_of(store: ObjectStore, candidate: _Candidate) -> bytes:
    return candidate.held or bytes(manifest_bytes(store, candidate.step))


def _candidates(store: ObjectStore, step: int | None, fallback: bool) -> list[_Candidate]:
    """What may be loaded, best first: a peer may hold a step that the store does not have (yet)."""
    held = store.held()
    if step is not None and not fallback and held is None:
        return [_Candidate(step=step)]
    try:
        numbers = step_numbers(store)
    except StoreError:
        if held is None:
            raise
        numbers = []
    found = [_Candidate(step=number) for number in numbers]
    if held is not None:
        held_step = step_of(held[0]) or 0
        if held_step not in numbers and (step == held_step or held_step > max(numbers, default=-1)):
            found.insert(0, _Candidate(step=held_step, held=held[1]))
    if step is not None:
        first = [c for c in found if c.step == step] or [_Candidate(step=step)]
        found = [*first, *(c for c in found if c.step < step)]
    return found if fallback else found[:1]


def _load_one(
    store: ObjectStore,
    state: dict[Any, Any] | None,
    candidate: _Candidate,
    data: bytes,
    ranks: Ranks,
    unpickle: bool,
) -> tuple[dict[Any, Any], Manifest]:
    with garbage_pause():
        return _read(store, state, candidate.step, data, ranks, unpickle)


def _read(
    store: ObjectStore,
    state: dict[Any, Any] | None,
    step: int,
    data: bytes,
    ranks: Ranks,
    unpickle: bool,
) -> tuple[dict[Any, Any], Manifest]:
    """All that is made on the way is gone when it returns, before garbage is looked for again."""
    group, node = ranks.group, ranks.node()
    prepared: list[tuple[Manifest, list[Want], Callable[[], dict[Any, Any]]]] = []

    def prepare() -> None:
        name = f"{store.uri}/{manifest_key(step)}"
        manifest = Manifest.decode(name, data, step=step)
        if state is None:
            prepared.append((manifest, *state_wants(manifest, unpickle=unpickle)))
        else:
            wants = _fill_wants(store, state, manifest, unpickle)
            prepared.append((manifest, wants, lambda: state))

    node.begin()
    try:
        group.each(prepare)
        manifest, wants, finish = prepared.pop()
        digest = digest_of(manifest.digest)
        group.each(lambda: node.read(store, digest, manifest, wants))
    finally:
        node.end()
    return finish(), manifest


def _fill_wants(
    store: ObjectStore, state: dict[Any, Any], manifest: Manifest, unpickle: bool
) -> list[Want]:
    leaves, _ = flatten(state)
    wants, left = tensor_wants(manifest, leaves)
    if not left:
        return wants
    # DCP's load plan needs no talk between ranks: each reads what its own boxes need
    reader = CheckpointReader(store, manifest=manifest)
    planner = StateLoadPlanner(unpickle=unpickle, filled=leaves.keys() - left.keys())
    metadata: Metadata = reader.read_metadata()
    planner.set_up_planner(state, metadata, is_coordinator=True)
    reader.set_up_storage_reader(metadata, True)
    plan = planner.finish_plan(planner.create_local_plan())
    return [*wants, *reader.wants(plan.items, planner)]
