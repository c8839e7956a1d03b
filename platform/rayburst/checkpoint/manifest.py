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
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

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


class Shard(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A box of a tensor: `offset` and `shape` per dimension, row-major bytes in `chunks`."""

    offset: tuple[int, ...]
    shape: tuple[int, ...]
    chunk_bytes: int
    chunks: tuple[Chunk, ...]


class StoredTensor(msgspec.Struct, frozen=True, gc=False):
    """A tensor: dtype as torch names it ("float32"), whole shape, the boxes that fill it."""

    dtype: str
    shape: tuple[int, ...]
    shards: tuple[Shard, ...]


class StoredObject(msgspec.Struct, frozen=True, array_like=True, gc=False):
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
    stored_bytes: int = 0  # of its object; as `sha256`, known of one that is stored

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
        text = _canonical(self)
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
        body = _read(name, raw)
        if step is not None and body.step != step:
            raise CheckpointDamagedError(
                f"{name}: holds the manifest of step {body.step}, not of step {step}"
            )
        return replace(_parse(name, body), sha256=sha, stored_bytes=len(raw))


def sealed(tail: bytes) -> str | None:
    """The digest that ends a manifest, from its last SEAL_BYTES; None if they are no seal."""
    if not tail.startswith(b',"sha256":"') or not tail.endswith(b'"}'):
        return None
    return tail[11:75].decode("ascii", "replace")


class _Head(msgspec.Struct):
    """What every version has."""

    format: str = ""
    version: int = 0


class _Body(_Head, kw_only=True):
    """The JSON of version 1, decoded straight into what stays: ten thousand tensors in 10 ms."""

    step: int
    save: str
    created_ms: int
    world: int
    digest: str
    parent: tuple[int, str] | None
    packs: list[str]
    tensors: dict[str, StoredTensor]
    objects: dict[str, StoredObject]
    paths: list[tuple[str, tuple[Any, ...]]]
    about: msgspec.Raw  # the user's: json reads it, which bounds no integer


_head = msgspec.json.Decoder(_Head)
_body = msgspec.json.Decoder(_Body)
_encoder = msgspec.json.Encoder(order="sorted")


def _read(name: str, raw: bytes) -> _Body:
    try:
        body = _body.decode(raw)
    except msgspec.MsgspecError as error:
        _check(name, _head_of(raw))
        raise CheckpointDamagedError(f"{name}: not a {FORMAT} manifest: {error}") from None
    _check(name, body)
    return body


def _head_of(raw: bytes) -> _Head:
    try:
        return _head.decode(raw)
    except msgspec.MsgspecError:
        return _Head()


def _check(name: str, head: _Head) -> None:
    if head.format != FORMAT:
        raise CheckpointDamagedError(f"{name}: not a {FORMAT} manifest")
    if head.version > FORMAT_VERSION:
        raise CheckpointError(
            f"{name}: format version {head.version}; this rayburst reads up to "
            f"{FORMAT_VERSION}. Upgrade rayburst."
        )


def _canonical(m: Manifest) -> bytes:
    try:
        about = json.dumps(dict(m.about), separators=(",", ":"), sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"data, rng, config and metrics of a checkpoint must be JSON without NaN: {error}"
        ) from None
    text = _encoder.encode(_wire(m, msgspec.Raw(about.encode())))
    if text.isascii():
        return text
    return json.dumps(json.loads(text), separators=(",", ":"), sort_keys=True).encode("ascii")


def _wire(m: Manifest, about: msgspec.Raw) -> dict[str, Json]:
    number = {pack: i for i, pack in enumerate(sorted(m.packs()))}

    def refs(chunks: tuple[Chunk, ...]) -> Json:
        return [(c.digest, number[c.pack], c.offset, c.length) for c in chunks]

    return {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "step": m.step,
        "save": m.save,
        "created_ms": m.created_ms,
        "world": m.world,
        "digest": m.digest,
        "parent": None if m.parent is None else (m.parent.step, m.parent.save),
        "packs": list(number),
        "tensors": {
            name: {
                "dtype": t.dtype,
                "shape": t.shape,
                "shards": [(s.offset, s.shape, s.chunk_bytes, refs(s.chunks)) for s in t.shards],
            }
            for name, t in m.tensors.items()
        },
        "objects": {
            name: (o.encoding, o.chunk_bytes, refs(o.chunks)) for name, o in m.objects.items()
        },
        "paths": list(m.paths.items()),  # in the state's order
        "about": about,
    }


def _parse(name: str, body: _Body) -> Manifest:
    if body.digest not in DIGESTS:
        raise CheckpointError(f"{name}: digest {body.digest!r} is not known to this rayburst")
    found = Manifest(
        step=body.step,
        save=body.save,
        created_ms=body.created_ms,
        world=body.world,
        digest=body.digest,
        parent=None if body.parent is None else Parent(step=body.parent[0], save=body.parent[1]),
        tensors=body.tensors,
        objects=body.objects,
        paths=dict(body.paths),
        about=json.loads(bytes(body.about)),
    )
    numbered: Any = dict(enumerate(body.packs))
    try:
        for _, chunk in found.chunks():
            # frozen, but nobody else has seen it yet
            msgspec.structs.force_setattr(chunk, "pack", numbered[chunk.pack])
    except KeyError as error:
        raise CheckpointDamagedError(f"{name}: a chunk names pack {error}, which is none") from None
    return found


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
