"""Nested state <-> flat names. Exact: int keys, lists and empty containers come back as they were.

Names are joined by dots ("model.layers.0.weight"); the path beside each name says what each part
is: text for a dict's key, [n] for a list's index, {"int": n} for an int key of a dict.

Deliberately does not know what the leaves are, except that tensors end the descent.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch

from rayburst.errors import CheckpointError

__all__ = ["Outline", "flatten", "place", "rebuild"]

Path = tuple[Any, ...]


def flatten(state: Mapping[Any, Any]) -> tuple[dict[str, Any], dict[str, Path]]:
    """Leaves by flat name, and the path of each. CheckpointError for two leaves of one name."""
    leaves: dict[str, Any] = {}
    paths: dict[str, Path] = {}

    def visit(name: str, path: Path, value: Any) -> None:
        if type(value) is not torch.Tensor:
            if isinstance(value, Mapping) and value:
                prefix = f"{name}." if path else ""
                for key, inner in value.items():
                    part = key if type(key) is str else _key(key, name)
                    visit(f"{prefix}{key}", (*path, part), inner)
                return
            if isinstance(value, list) and _descends(value):
                for index, inner in enumerate(value):
                    visit(f"{name}.{index}" if path else str(index), (*path, [index]), inner)
                return
        if name in leaves:
            raise CheckpointError(f"two leaves of the state are both named {name!r}; rename one")
        leaves[name] = value
        paths[name] = path

    visit("", (), state)
    if "" in paths and paths[""] == ():
        return {}, {}
    return leaves, paths


def _key(key: Any, name: str) -> Any:
    if type(key) is str:
        return key
    if type(key) is int:
        return {"int": key}
    raise CheckpointError(f"key {key!r} below {name!r}: keys of a state are str or int")


def _descends(values: list[Any]) -> bool:
    return any(
        isinstance(v, torch.Tensor | Mapping) or (isinstance(v, list) and _descends(v))
        for v in values
    )


class Outline:
    """The shape of a state that was seen: gives the leaves of the next one of that shape fast.

    `leaves` compares keys and types container by container at C speed instead of naming every
    leaf again: a tenth of `flatten`'s time for ten thousand leaves.
    """

    def __init__(self, state: Mapping[Any, Any]) -> None:
        self.named, self.paths = flatten(state)
        self.names = list(self.named)
        self._root = _outline(state)

    def leaves(self, state: Mapping[Any, Any]) -> list[Any] | None:
        """Leaves in the order of `names`; None if the state has another shape."""
        found: list[Any] = []
        return found if _collect(self._root, state, found) else None


class _Container:
    """Keys and value types of a dict or list, and which of its values are containers."""

    __slots__ = ("inner", "keys", "plain", "types")

    def __init__(self, keys: list[Any] | None, types: list[type], inner: dict[int, Any]) -> None:
        self.keys, self.types, self.inner = keys, types, inner
        self.plain = not any(issubclass(kind, list | Mapping) for kind in set(types))


def _outline(value: Any) -> _Container | None:
    if isinstance(value, torch.Tensor):
        return None
    if isinstance(value, Mapping) and value:
        keys, values = list(value), list(value.values())
    elif isinstance(value, list) and _descends(value):
        keys, values = None, value
    else:
        return None
    inner = {i: node for i, v in enumerate(values) if (node := _outline(v)) is not None}
    return _Container(keys, list(map(type, values)), inner)


def _collect(node: _Container | None, value: Any, found: list[Any]) -> bool:
    if node is None:
        return False
    if node.keys is not None:
        if list(value) != node.keys:
            return False
        values = list(value.values())
    else:
        values = value
    if list(map(type, values)) != node.types:
        return False
    if node.plain:
        found += values
        return True
    for i, item in enumerate(values):
        inner = node.inner.get(i)
        if inner is None:
            # an empty dict or a list of numbers is a leaf, but may have grown into a container
            if _outline(item) is not None:
                return False
            found.append(item)
        elif not _collect(inner, item, found):
            return False
    return True


def rebuild(leaves: Mapping[str, Any], paths: Mapping[str, Path]) -> dict[Any, Any]:
    """The nested state of flat leaves."""
    root: dict[Any, Any] = {}
    for name, value in leaves.items():
        place(root, paths.get(name, (name,)), value)
    return root


def place(root: Any, path: Path, value: Any) -> None:
    """Set the leaf at `path`, making the containers on the way."""
    here = root
    for part, following in pairwise(path):
        here = _step(here, part, [] if isinstance(following, list) else {})
    last = path[-1]
    if isinstance(last, list):
        _extend(here, last[0])
        here[last[0]] = value
    else:
        here[last["int"] if isinstance(last, dict) else last] = value


def _step(here: Any, part: Any, fresh: Any) -> Any:
    if isinstance(part, list):
        _extend(here, part[0])
        if here[part[0]] is None:
            here[part[0]] = fresh
        return here[part[0]]
    return here.setdefault(part["int"] if isinstance(part, dict) else part, fresh)


def _extend(values: list[Any], index: int) -> None:
    while len(values) <= index:
        values.append(None)
