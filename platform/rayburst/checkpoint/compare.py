"""PURE: what differs between two checkpoints, from their manifests alone."""

from __future__ import annotations

from dataclasses import dataclass

from rayburst.checkpoint.chunks import Chunk
from rayburst.checkpoint.manifest import Manifest, StoredObject, StoredTensor

__all__ = ["Difference", "compare"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """A leaf that differs; `changed_bytes` of the second checkpoint are not in the first's leaf."""

    name: str
    what: str
    changed_bytes: int = 0


def compare(first: Manifest, second: Manifest) -> list[Difference]:
    """Leaves that were added, removed or changed, by name. Equal layouts compare chunk by chunk."""
    left: dict[str, StoredTensor | StoredObject] = {**first.tensors, **first.objects}
    right: dict[str, StoredTensor | StoredObject] = {**second.tensors, **second.objects}
    rows = []
    for name in sorted(left.keys() | right.keys()):
        if name not in right:
            rows.append(Difference(name=name, what="removed"))
        elif name not in left:
            rows.append(Difference(name=name, what="added", changed_bytes=_size(right[name])))
        elif (row := _changed(name, left[name], right[name])) is not None:
            rows.append(row)
    return rows


def _changed(
    name: str, old: StoredTensor | StoredObject, new: StoredTensor | StoredObject
) -> Difference | None:
    if isinstance(old, StoredTensor) and isinstance(new, StoredTensor):
        if (old.dtype, old.shape) != (new.dtype, new.shape):
            what = f"{old.dtype} {old.shape} became {new.dtype} {new.shape}"
            return Difference(name=name, what=what, changed_bytes=_size(new))
        if [(s.offset, s.shape) for s in old.shards] != [(s.offset, s.shape) for s in new.shards]:
            # cut differently: equal bytes cannot be told from digests
            return Difference(name=name, what="sharded differently", changed_bytes=_size(new))
    elif type(old) is not type(new):
        return Difference(name=name, what="another kind of leaf", changed_bytes=_size(new))
    pairs = zip(_chunks(old), _chunks(new), strict=False)
    size = sum(b.length for a, b in pairs if (a.digest, a.length) != (b.digest, b.length))
    size += max(0, _size(new) - _size(old))
    if size or _size(new) != _size(old):
        return Difference(name=name, what="changed", changed_bytes=size)
    return None


def _chunks(stored: StoredTensor | StoredObject) -> list[Chunk]:
    if isinstance(stored, StoredObject):
        return list(stored.chunks)
    return [chunk for shard in stored.shards for chunk in shard.chunks]


def _size(stored: StoredTensor | StoredObject) -> int:
    return sum(chunk.length for chunk in _chunks(stored))
