"""The newest checkpoint in another node's memory: a restore that need not wait for the store.

    peer = place_peer("run-7", uri)               # an actor in another zone or pool, if any
    store = PeerStore.over(ObjectStore.open(uri), peer)
    with Checkpointer(store) as checkpoints:      # saves go to the store and to the peer's memory
        checkpoints.load(state)                   # reads from whichever answers faster

The peer holds packs and manifest as they lie on the store, under the same keys, so what it gives is
proven by the same digests. It takes a checkpoint when it is committed on the store, never before,
and lets the old one go only when the new one is complete. A peer that is dead, late or wrong
costs one request; then the store is read.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rayburst.checkpoint.manifest import Manifest
from rayburst.checkpoint.protocol import PACKS, step_of
from rayburst.checkpoint.store import ObjectStore
from rayburst.errors import ObjectNotFoundError, StoreError

__all__ = ["Node", "PeerStore", "choose_node", "find_peer", "place_peer"]

_PROBE_BYTES = 1024 * 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """A living Ray node and its labels."""

    node_id: str
    labels: Mapping[str, str]


def choose_node(nodes: Sequence[Node], own: Node) -> Node | None:
    """PURE: where the peer goes: another zone, else another pool, else another host; else None."""

    def distance(node: Node) -> tuple[int, str]:
        for rank, label in enumerate(("rayburst.io/zone", "rayburst.io/pool")):
            mine, theirs = own.labels.get(label), node.labels.get(label)
            if mine is not None and theirs is not None and mine != theirs:
                return rank, node.node_id
        return 2, node.node_id

    others = [node for node in nodes if node.node_id != own.node_id]
    return min(others, key=distance, default=None)


class Holder:
    """The actor: one committed checkpoint in memory, and the packs of the next one."""

    def __init__(self, uri: str) -> None:
        self._store = ObjectStore.open(uri)
        self._objects: dict[str, bytes] = {}
        self._step: int | None = None

    def take(self, key: str, data: bytes) -> None:
        """Keep a pack for a checkpoint to come."""
        self._objects[key] = bytes(data)

    def commit(self, key: str, data: bytes) -> int:
        """A checkpoint is committed: fetch what is missing, then let the old one go."""
        manifest = Manifest.decode(key, data)
        if self._step is not None and manifest.step < self._step:
            return self._step
        for pack in manifest.packs() - self._objects.keys():
            self._objects[pack] = self._store.get(pack)
        kept = {pack: self._objects[pack] for pack in manifest.packs()}
        self._objects = {**kept, key: bytes(data)}
        self._step = manifest.step
        return manifest.step

    def read(self, key: str, start: int, length: int) -> bytes | None:
        """Bytes of a held object; None where it is not held."""
        data = self._objects.get(key)
        return None if data is None else data[start : start + length]

    def whole(self, key: str) -> bytes | None:
        """A held object; None where it is not held."""
        return self._objects.get(key)

    def holds(self) -> tuple[int | None, int]:
        """(step, bytes in memory)."""
        return self._step, sum(map(len, self._objects.values()))


def place_peer(run: str, uri: str) -> Any:
    """Start the run's holder, or find the one that lives. It outlives the trainer's workers."""
    own_id = ray.get_runtime_context().get_node_id()
    nodes = [
        Node(node_id=n["NodeID"], labels=n.get("Labels") or {}) for n in ray.nodes() if n["Alive"]
    ]
    own = next((n for n in nodes if n.node_id == own_id), Node(node_id=own_id, labels={}))
    chosen = choose_node(nodes, own) or own
    actor = ray.remote(num_cpus=0, max_restarts=0)(Holder)
    return actor.options(
        name=_name(run),
        namespace="rayburst",
        get_if_exists=True,
        lifetime="detached",
        scheduling_strategy=NodeAffinitySchedulingStrategy(chosen.node_id, soft=True),
    ).remote(uri)


def find_peer(run: str) -> Any | None:
    """The run's holder, or None where it is gone."""
    try:
        return ray.get_actor(_name(run), namespace="rayburst")
    except ValueError:
        return None


def _name(run: str) -> str:
    return f"rayburst-peer-{run}"


class PeerStore(ObjectStore):
    """An object store with a peer's memory before it, for packs and manifests."""

    _peer: Any = None
    _timeout_s = 10.0

    @classmethod
    def over(
        cls,
        store: ObjectStore,
        peer: Any,
        *,
        timeout_s: float = 10.0,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> PeerStore:
        """Put `peer` before `store`. `timeout_s` bounds each wait for it."""
        made = cls(store.uri, store._backend, store._prefix, store._root, store._options)
        made._peer, made._timeout_s, made._monotonic = peer, timeout_s, monotonic
        made._distrusted = set()
        made._peer_is_faster = None
        made._lock = threading.Lock()
        made._sent = []
        return made

    _monotonic: Callable[[], float]
    _distrusted: set[str]
    _peer_is_faster: bool | None
    _lock: threading.Lock
    _sent: list[Any]

    @property
    def reads_from_peer(self) -> bool | None:
        """Whether the peer answered faster; None before the first read."""
        return self._peer_is_faster

    def put(
        self,
        key: str,
        data: bytes | memoryview | Sequence[bytes | memoryview],
        *,
        if_absent: bool = False,
    ) -> None:
        super().put(key, data, if_absent=if_absent)
        if key.startswith(PACKS) or step_of(key) is not None:
            whole = b"".join([data] if isinstance(data, bytes | memoryview) else data)
            method = self._peer.take if key.startswith(PACKS) else self._peer.commit
            with self._lock:
                self._sent = [*self._sent[-8:], method.remote(key, whole)]

    def drain(self, timeout_s: float) -> None:
        """Wait until the peer has taken what was sent. StoreError if it has not."""
        try:
            ray.get(self._sent, timeout=timeout_s)
        except (RayError, GetTimeoutError) as error:
            raise StoreError(f"{self.uri}: the peer did not take the checkpoint: {error}") from None

    def get_buffer(self, key: str) -> memoryview:
        # what is true now is the store's to say; the peer speaks when the store cannot
        try:
            return super().get_buffer(key)
        except ObjectNotFoundError:
            raise
        except StoreError:
            found = self._held(key) if step_of(key) is not None else None
            if found is None:
                raise
            return found

    def _held(self, key: str) -> memoryview | None:
        try:
            data = ray.get(self._peer.whole.remote(key), timeout=self._timeout_s)
        except (RayError, GetTimeoutError):
            return None
        return None if data is None else memoryview(data)

    def get_range_buffer(self, key: str, start: int, length: int) -> memoryview:
        if not key.startswith(PACKS) or key in self._distrusted or self._peer_is_faster is False:
            return super().get_range_buffer(key, start, length)
        if self._peer_is_faster is None:
            self._probe(key, start, min(length, _PROBE_BYTES))
        found = self._ask(key, start, length)
        return super().get_range_buffer(key, start, length) if found is None else found

    def distrust(self, key: str) -> None:
        self._distrusted.add(key)

    def _probe(self, key: str, start: int, length: int) -> None:
        """The same small read from both; the faster one serves the rest."""
        begun = self._monotonic()
        found = self._ask(key, start, length)
        middle = self._monotonic()
        if found is None:
            self._peer_is_faster = False
            return
        try:
            super().get_range_buffer(key, start, length)
        except (ObjectNotFoundError, StoreError):
            self._peer_is_faster = True  # the store cannot be read: the peer can
            return
        self._peer_is_faster = middle - begun <= self._monotonic() - middle

    def _ask(self, key: str, start: int, length: int) -> memoryview | None:
        try:
            answer = self._peer.read.remote(key, start, length)
            data = ray.get(answer, timeout=self._timeout_s)
        except (RayError, GetTimeoutError):
            self._peer_is_faster = False
            return None
        return None if data is None else memoryview(data)


def peer_step(peer: Any, timeout_s: float = 10.0) -> int | None:
    """The step that the peer holds whole; None where it holds none or does not answer."""
    try:
        step: int | None = ray.get(peer.holds.remote(), timeout=timeout_s)[0]
    except (RayError, GetTimeoutError):
        return None
    return step
