"""The newest snapshot of a run in another node's memory (`rayburst.checkpoint.peers`), under Ray.

Rank 0 has a holder started at its first save, in the background; the other ranks find it. A restore
takes what the holder has where that is newer than what the store has, or is read faster. The
trainer ends the holder with the run. A state that is too large for a node's memory has none.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from rayburst.checkpoint.store import ObjectStore

__all__ = ["Peer", "RayPeer", "state_bytes"]

ANSWER_S = 3.0
"""How long a holder may take: it is asked while training stands still."""
_logger = logging.getLogger(__name__)


class Peer(Protocol):
    """What a keeper asks for. Both give `store`, with the holder before it where there is one."""

    @property
    def is_found(self) -> bool:
        """Whether there is a holder."""

    def find(self, store: ObjectStore) -> ObjectStore:
        """To load from."""

    def ready(self, store: ObjectStore, *, places: bool, needs_bytes: int) -> ObjectStore:
        """To save to, before each save. `places`: start a holder when there is none."""


class RayPeer:
    """The holder of one run."""

    def __init__(self, run: str) -> None:
        self._run = run
        self._holder: Any = None
        self._looking: threading.Thread | None = None

    @property
    def is_found(self) -> bool:
        return self._holder is not None

    def find(self, store: ObjectStore) -> ObjectStore:
        from rayburst.checkpoint.peers import find_peer

        self._holder = find_peer(self._run, store.uri)
        return self._before(store)

    def ready(self, store: ObjectStore, *, places: bool, needs_bytes: int) -> ObjectStore:
        is_looking = self._looking is not None and self._looking.is_alive()
        if self._holder is None and not is_looking:
            # a process may have to start: a later save goes there too
            arguments = (store.uri, needs_bytes if places else None)
            self._looking = threading.Thread(
                target=self._look, args=arguments, name="peer", daemon=True
            )
            self._looking.start()
        return self._before(store)

    def _before(self, store: ObjectStore) -> ObjectStore:
        from rayburst.checkpoint.peers import PeerStore

        if self._holder is None or isinstance(store, PeerStore):
            return store
        return PeerStore.over(store, self._holder, timeout_s=ANSWER_S)

    def _look(self, uri: str, needs_bytes: int | None) -> None:
        from ray.exceptions import RayError

        from rayburst.checkpoint.peers import find_peer, place_apart

        try:
            holder = None if needs_bytes is None else place_apart(self._run, uri, needs_bytes)
            self._holder = holder or find_peer(self._run, uri)
        except RayError as error:
            _logger.warning("no peer holds snapshots of this run: %s", error)


def state_bytes(state: Mapping[str, Any]) -> int:
    """Bytes of the tensors in a nested state, those of all ranks."""
    total = 0
    for value in state.values():
        if isinstance(value, Tensor):
            total += value.numel() * value.element_size()
        elif isinstance(value, Mapping):
            total += state_bytes(value)
    return total
