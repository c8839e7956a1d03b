"""What a checkpoint peer keeps in its memory: one whole checkpoint, and the packs of the next.

Run as a Ray actor by peers.py; knows no Ray itself. Holds up to three times the state: the whole
checkpoint and two saves on their way.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from rayburst.checkpoint.manifest import Manifest
from rayburst.checkpoint.protocol import save_of
from rayburst.checkpoint.store import ObjectStore

__all__ = ["Holder"]

_SAVES_UNDER_WAY = 2


class Holder:
    """Packs and manifests by key. One caller at a time. `asked_s`: when it was used last, by
    `monotonic`.
    """

    def __init__(self, uri: str, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic, self.asked_s = monotonic, monotonic()
        self._uri, self._store = uri, ObjectStore.open(uri)
        self._objects: dict[str, bytes] = {}
        self._whole: tuple[Manifest, str, bytes] | None = None
        self._coming: tuple[Manifest, str, bytes] | None = None

    def of(self) -> str:
        """Whose checkpoints it holds."""
        return self._uri

    def take(self, key: str, data: bytes) -> None:
        """Keep a pack for a checkpoint to come."""
        self.asked_s = self._monotonic()
        self._objects[key] = bytes(data)
        self._settle()

    def offer(self, key: str, data: bytes) -> None:
        """A manifest that is not committed yet; its packs are here or on their way.

        What it shares with older checkpoints is on the store.
        """
        manifest = Manifest.decode(key, data)
        self._coming = (manifest, key, bytes(data))
        self._fetch(p for p in manifest.packs() if save_of(p) != manifest.save)
        self._settle()

    def commit(self, key: str, data: bytes) -> int:
        """A checkpoint is on the store: have all of it, then let the old one go.

        The newest commit counts, whatever its step: a run that was set back goes on from there.
        """
        self.asked_s = self._monotonic()
        manifest = Manifest.decode(key, data)
        self._coming = (manifest, key, bytes(data))
        self._fetch(manifest.packs())
        self._settle()
        return manifest.step

    def _fetch(self, packs: Iterable[str]) -> None:
        for pack in [p for p in packs if p not in self._objects]:
            self._objects[pack] = self._store.get(pack)

    def _settle(self) -> None:
        """The coming checkpoint is held when all of it is here. What nothing needs goes."""
        if self._coming is not None and self._coming[0].packs() <= self._objects.keys():
            self._whole, self._coming = self._coming, None
        saves = {save_of(pack) or "" for pack in self._objects}
        if self._whole is not None:
            saves = {save for save in saves if save > self._whole[0].save}
        under_way = sorted(saves)[-_SAVES_UNDER_WAY:]
        needed = set[str]().union(*(m[0].packs() for m in (self._whole, self._coming) if m))
        self._objects = {
            key: data
            for key, data in self._objects.items()
            if key in needed or save_of(key) in under_way
        }

    def read(self, key: str, start: int, length: int) -> bytes | None:
        """Bytes of a held pack; None where it is not held."""
        data = self._objects.get(key)
        return None if data is None else data[start : start + length]

    def whole(self) -> tuple[str, bytes] | None:
        """Key and bytes of the manifest whose packs are all here."""
        self.asked_s = self._monotonic()
        return None if self._whole is None else self._whole[1:]

    def holds(self) -> tuple[int | None, int]:
        """(step that is whole, bytes in memory)."""
        step = None if self._whole is None else self._whole[0].step
        return step, sum(map(len, self._objects.values()))
