"""Moves the live chunks of badly used packs into new ones and points the manifests there.

A pack dies only as a whole, so after many incremental saves old packs can hold a few live chunks
each. Chunks are proven as they move. New packs are written first, then each manifest is replaced
in one step by an equal one with other places; a crash in between loses nothing.

The caller holds the collection's lock and has seen no live lease. A manifest is replaced only where
it is still the writing that was read: of a collection that was taken for dead and lives on nothing
is published over the work of its successor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TypeVar

from msgspec import structs

from rayburst.checkpoint.chunks import Chunk, digest_of
from rayburst.checkpoint.fetch import Want, fetch
from rayburst.checkpoint.manifest import SEAL_BYTES, Manifest, StoredObject, sealed
from rayburst.checkpoint.packs import PACK_BYTES
from rayburst.checkpoint.protocol import GcReached, GcStep, ignore_step, manifest_key, pack_key
from rayburst.checkpoint.store import ObjectInfo, ObjectStore, StoreOptions
from rayburst.errors import CheckpointError, ObjectExistsError

__all__ = ["compact", "poor_packs"]

S = TypeVar("S")
Moves = dict[Chunk, Chunk]
_HASTE = StoreOptions(request_timeout_s=30, read_timeout_s=30, retry_s=60)  # well within the lock's


def compact(
    store: ObjectStore,
    manifests: list[Manifest],
    infos: Mapping[str, ObjectInfo],
    below: float,
    new_id: str,
    reached: GcReached = ignore_step,
) -> tuple[list[Manifest], int]:
    """Rewrite packs whose live share is under `below`. Returns (manifests as they are now, bytes
    moved)."""
    names = {chunk: name for manifest in manifests for name, chunk in manifest.chunks()}
    poor = list(poor_packs(manifests, infos, below).values())
    moves = _move(store, poor, names, f"gc-{new_id}", reached)
    if not moves:
        return manifests, 0
    now = []
    for manifest in manifests:
        now.append(_publish(store, manifest, moves))
        reached(GcStep.REPOINTED)
    return now, sum(c.length for c in moves)


def poor_packs(
    manifests: Iterable[Manifest], infos: Mapping[str, ObjectInfo], below: float
) -> dict[str, dict[Chunk, str]]:
    """PURE: packs whose live share is under `below`, each with its live chunks and their digest."""
    live: dict[str, dict[Chunk, str]] = {}
    for manifest in manifests:
        for _, chunk in manifest.chunks():
            live.setdefault(chunk.pack, {})[chunk] = manifest.digest
    return {
        pack: chunks
        for pack, chunks in sorted(live.items())
        if pack in infos and sum(c.length for c in chunks) < below * infos[pack].size_bytes
    }


def _move(
    store: ObjectStore,
    poor: list[dict[Chunk, str]],
    names: Mapping[Chunk, str],
    save: str,
    reached: GcReached,
) -> Moves:
    moves: Moves = {}
    parts: list[bytes] = []
    waiting: list[Chunk] = []
    number = 0

    def flush() -> None:
        nonlocal number
        key, offset = pack_key(save, 0, number), 0
        store.put(key, list(parts))
        for chunk in waiting:
            moves[chunk] = Chunk(chunk.digest, key, offset, chunk.length)
            offset += chunk.length
        parts.clear()
        waiting.clear()
        number += 1
        reached(GcStep.MOVED)

    for chunks in poor:
        found: dict[Chunk, bytes] = {}
        for algorithm in sorted(set(chunks.values())):
            wants = [
                Want(c, names[c], _keep(found, c)) for c, a in chunks.items() if a == algorithm
            ]
            fetch(store, digest_of(algorithm), wants)
        for chunk, data in found.items():
            parts.append(data)
            waiting.append(chunk)
            if sum(map(len, parts)) >= PACK_BYTES:
                flush()
    if waiting:
        flush()
    return moves


def _keep(found: dict[Chunk, bytes], chunk: Chunk) -> Callable[[memoryview], None]:
    def deliver(data: memoryview) -> None:
        found[chunk] = bytes(data)

    return deliver


def _publish(store: ObjectStore, manifest: Manifest, moves: Moves) -> Manifest:
    if not any(chunk in moves for _, chunk in manifest.chunks()):
        return manifest
    key = manifest_key(manifest.step)
    name = f"{store.uri}/{key}"
    data, tag = store.get_tagged(key)
    if sealed(data[-SEAL_BYTES:]) != manifest.sha256:
        raise _overtaken(name)

    def moved(chunks: tuple[Chunk, ...]) -> tuple[Chunk, ...]:
        return tuple([moves.get(chunk, chunk) for chunk in chunks])

    tensors = {
        name: structs.replace(
            t, shards=tuple([structs.replace(s, chunks=moved(s.chunks)) for s in t.shards])
        )
        for name, t in manifest.tensors.items()
    }
    objects: dict[str, StoredObject] = {
        name: structs.replace(o, chunks=moved(o.chunks)) for name, o in manifest.objects.items()
    }
    fresh = replace(manifest, tensors=tensors, objects=objects).encode()
    try:
        store.patient(_HASTE).replace(key, fresh, tag)
    except ObjectExistsError:
        if store.get(key) != fresh:  # else the reply to the first try was lost
            raise _overtaken(name) from None
    return Manifest.decode(name, fresh, step=manifest.step)


def _overtaken(name: str) -> CheckpointError:
    return CheckpointError(
        f"{name}: replaced while this collection moved its chunks; another collection is at work. "
        f"Nothing is lost: run this one again when the other is done."
    )
