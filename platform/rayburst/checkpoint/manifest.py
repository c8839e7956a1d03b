"""The manifest: one canonical JSON object that is the checkpoint.

It binds step, tensors with their shards and chunk digests, data position, random state, config,
code version and parent. Its own SHA-256 stands inside it, so a changed manifest is refused. The
format is described in docs/checkpoint-format.md; `FORMAT_VERSION` changes with it, and stored
fixtures of every version stay loadable.

Deliberately knows no torch and no store: names, numbers and text only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from rayburst.checkpoint.chunks import DIGESTS, Chunk, cut
from rayburst.errors import CheckpointDamagedError, CheckpointError

__all__ = [
    "FORMAT_VERSION",
    "SEAL_BYTES",
    "Manifest",
    "Parent",
    "Shard",
    "StoredObject",
    "StoredTensor",
]

FORMAT = "rayburst-checkpoint"
FORMAT_VERSION = 1
SEAL_BYTES = 77  # ,"sha256":"<64 hex digits>"}
Json = Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """A box of a tensor: `offset` and `shape` per dimension, row-major bytes in `chunks`."""

    offset: tuple[int, ...]
    shape: tuple[int, ...]
    chunk_bytes: int
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredTensor:
    """A tensor: dtype as torch names it ("float32"), whole shape, the boxes that fill it."""

    dtype: str
    shape: tuple[int, ...]
    shards: tuple[Shard, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredObject:
    """A leaf that is no tensor. `encoding` is "json" or "torch" (a torch.save file)."""

    encoding: str
    chunk_bytes: int
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Parent:
    """The checkpoint that this one was built on; `save` is unique to it."""

    step: int
    save: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """A checkpoint. `paths` says where each flat name lies in the nested state."""

    step: int
    save: str
    created_ms: int
    world: int
    digest: str
    parent: Parent | None
    tensors: Mapping[str, StoredTensor]
    objects: Mapping[str, StoredObject]
    paths: Mapping[str, tuple[Any, ...]]
    about: Mapping[str, Json] = field(default_factory=dict)
    sha256: str = ""

    def chunks(self) -> Iterator[tuple[str, Chunk]]:
        """Every (tensor or object name, chunk)."""
        for name, tensor in self.tensors.items():
            for shard in tensor.shards:
                for chunk in shard.chunks:
                    yield name, chunk
        for name, stored in self.objects.items():
            for chunk in stored.chunks:
                yield name, chunk

    def packs(self) -> set[str]:
        """Keys of all packs that this checkpoint needs."""
        return {chunk.pack for _, chunk in self.chunks()}

    @property
    def state_bytes(self) -> int:
        """Bytes of the whole state."""
        return sum(chunk.length for _, chunk in self.chunks())

    def encode(self) -> bytes:
        """Canonical bytes: sorted keys, no spaces, ASCII, the digest of the rest inside."""
        body = _body(self)
        text = _canonical(body)
        sha = hashlib.sha256(text).hexdigest()
        return text[:-1] + b',"sha256":"' + sha.encode() + b'"}'

    @classmethod
    def decode(cls, name: str, data: bytes | memoryview, *, step: int | None = None) -> Manifest:
        """Read and prove a manifest. `name` is the object's, for messages; `step` what it must be.

        CheckpointDamagedError: other bytes than were written, or a manifest of another step.
        CheckpointError: written by a newer rayburst.
        """
        raw = bytes(data)
        sha = sealed(raw[-SEAL_BYTES:])
        if len(raw) < 100 or sha is None:
            raise CheckpointDamagedError(f"{name}: the manifest is cut short or is not one")
        if hashlib.sha256(raw[:-SEAL_BYTES] + b"}").hexdigest() != sha:
            raise CheckpointDamagedError(
                f"{name}: the manifest holds other bytes than were written (its digest differs)"
            )
        body = json.loads(raw)
        if body.get("format") != FORMAT:
            raise CheckpointDamagedError(f"{name}: not a {FORMAT} manifest")
        if body["version"] > FORMAT_VERSION:
            raise CheckpointError(
                f"{name}: format version {body['version']}; this rayburst reads up to "
                f"{FORMAT_VERSION}. Upgrade rayburst."
            )
        if step is not None and body["step"] != step:
            raise CheckpointDamagedError(
                f"{name}: holds the manifest of step {body['step']}, not of step {step}"
            )
        return _parse(name, body, sha)


def sealed(tail: bytes) -> str | None:
    """The digest that ends a manifest, from its last SEAL_BYTES; None if they are no seal."""
    if not tail.startswith(b',"sha256":"') or not tail.endswith(b'"}'):
        return None
    return tail[11:75].decode("ascii", "replace")


def _canonical(body: Json) -> bytes:
    try:
        text = json.dumps(body, separators=(",", ":"), sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"data, rng, config and metrics of a checkpoint must be JSON without NaN: {error}"
        ) from None
    return text.encode("ascii")


def _body(m: Manifest) -> dict[str, Json]:
    number = {pack: i for i, pack in enumerate(sorted(m.packs()))}

    def refs(chunks: tuple[Chunk, ...]) -> Json:
        return [[c.digest, number[c.pack], c.offset, c.length] for c in chunks]

    return {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "step": m.step,
        "save": m.save,
        "created_ms": m.created_ms,
        "world": m.world,
        "digest": m.digest,
        "parent": None if m.parent is None else [m.parent.step, m.parent.save],
        "packs": list(number),
        "tensors": {
            name: {
                "dtype": t.dtype,
                "shape": list(t.shape),
                "shards": [
                    [list(s.offset), list(s.shape), s.chunk_bytes, refs(s.chunks)] for s in t.shards
                ],
            }
            for name, t in m.tensors.items()
        },
        "objects": {
            name: [o.encoding, o.chunk_bytes, refs(o.chunks)] for name, o in m.objects.items()
        },
        "paths": [[name, list(path)] for name, path in m.paths.items()],  # in the state's order
        "about": dict(m.about),
    }


def _parse(name: str, body: dict[str, Json], sha: str) -> Manifest:
    packs: list[str] = body["packs"]
    if body["digest"] not in DIGESTS:
        raise CheckpointError(f"{name}: digest {body['digest']!r} is not known to this rayburst")

    def chunks(refs: Json) -> tuple[Chunk, ...]:
        return tuple([Chunk(d, packs[p], offset, length) for d, p, offset, length in refs])

    parent = body["parent"]
    return Manifest(
        step=body["step"],
        save=body["save"],
        created_ms=body["created_ms"],
        world=body["world"],
        digest=body["digest"],
        parent=None if parent is None else Parent(step=parent[0], save=parent[1]),
        tensors={
            key: StoredTensor(
                dtype=t["dtype"],
                shape=tuple(t["shape"]),
                shards=tuple(
                    [
                        Shard(
                            offset=tuple(offset),
                            shape=tuple(shape),
                            chunk_bytes=chunk_bytes,
                            chunks=chunks(refs),
                        )
                        for offset, shape, chunk_bytes, refs in t["shards"]
                    ]
                ),
            )
            for key, t in body["tensors"].items()
        },
        objects={
            key: StoredObject(encoding=encoding, chunk_bytes=size, chunks=chunks(refs))
            for key, (encoding, size, refs) in body["objects"].items()
        },
        paths={key: tuple(path) for key, path in body["paths"]},
        about=body["about"],
        sha256=sha,
    )


def whole(name: str, stored: StoredTensor | StoredObject, item_bytes: int) -> None:
    """CheckpointDamagedError unless every shard's chunks make up its bytes."""
    if isinstance(stored, StoredObject):
        return
    for shard in stored.shards:
        size = item_bytes
        for extent in shard.shape:
            size *= extent
        lengths = [length for _, length in cut(size, shard.chunk_bytes)]
        if lengths != [chunk.length for chunk in shard.chunks]:
            raise CheckpointDamagedError(
                f"{name}: chunks do not make up the shard at {shard.offset}"
            )
