"""The newest checkpoint in another node's memory: a restore that need not wait for the store.

    store = with_peer("run-7", uri)               # an actor in another zone or pool, if any
    with Checkpointer(store) as checkpoints:      # saves go to the store and to the peer's memory
        checkpoints.load(state)                   # the newest whole copy, from whichever is faster
    release_peer("run-7")                         # when the run is over

The peer holds packs and manifest as they lie on the store, under the same keys, so what it gives is
proven by the same digests. It is sent every pack while the store still takes it, and the manifest
when every chunk has its place: a snapshot may be whole in the peer's memory before it is committed,
and then a restore finds it there. It lets the old one go only when the new one is whole, so it
holds up to three times the state. What it was not sent it fetches from the store at the commit.

A peer that is dead, late or wrong costs one request; then the store is read. Only the store makes a
checkpoint exist: a save is acknowledged when it is committed there.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rayburst.checkpoint.holder import Holder
from rayburst.checkpoint.local_files import Buffers
from rayburst.checkpoint.protocol import PACKS, step_of
from rayburst.checkpoint.store import ObjectStore, Tag
from rayburst.errors import StoreError

__all__ = [
    "Node",
    "PeerStore",
    "choose_node",
    "find_peer",
    "peer_step",
    "place_apart",
    "place_peer",
    "release_peer",
    "with_peer",
]

IDLE_S = 3600.0
_log = logging.getLogger(__name__)
_FLYING = 4  # packs on their way to the peer: 32 MiB
_PROBE_BYTES = 1024 * 1024
_TRIES = 5
_START_S = 60.0
_FOUND_S = 3.0
_TIMES_STATE = 3  # see the module
_MEMORY_SHARE = 0.25


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """A living Ray node and its labels. `takes_work`: it has CPUs that a worker could be given."""

    node_id: str
    labels: Mapping[str, str]
    takes_work: bool = True
    memory_bytes: float = math.inf


def choose_node(nodes: Sequence[Node], own: Node) -> Node | None:
    """PURE: where the peer goes: a node without workers, which no interruption of them takes along;
    else another zone, else another pool, else another host; else None.
    """

    def distance(node: Node) -> tuple[int, str]:
        if not node.takes_work:
            return -1, node.node_id
        for rank, label in enumerate(("rayburst.io/zone", "rayburst.io/pool")):
            mine, theirs = own.labels.get(label), node.labels.get(label)
            if mine is not None and theirs is not None and mine != theirs:
                return rank, node.node_id
        return 2, node.node_id

    others = [node for node in nodes if node.node_id != own.node_id]
    return min(others, key=distance, default=None)


def with_peer(run: str, uri: str) -> PeerStore:
    """The store at `uri` with the run's peer before it; the peer is started if there is none."""
    return PeerStore.over(ObjectStore.open(uri), place_peer(run, uri))


def release_peer(run: str) -> None:
    """End the run's holder and free its memory; fine where there is none."""
    peer = find_peer(run)
    if peer is not None:
        ray.kill(peer)


def place_peer(run: str, uri: str, *, idle_s: float = IDLE_S) -> Any:
    """Start the run's holder, or find the one that lives. It outlives the trainer's workers.

    When its node dies Ray starts it again elsewhere, empty: the next commit fills it. It ends by
    itself when nobody has saved or loaded for `idle_s`, as after a driver that was killed.
    """
    nodes, own = _nodes()
    chosen = choose_node(nodes, own) or own
    if (living := find_peer(run)) is not None:
        return living
    return _start_at(run, uri, chosen, own, idle_s)


def place_apart(run: str, uri: str, state_bytes: int) -> Any | None:
    """As `place_peer`, on another node whose memory a state of this size does not fill; else None.

    A holder may take a quarter of its node's memory.
    """
    if (living := find_peer(run)) is not None:
        return living if _answer(living.of, timeout_s=_FOUND_S) == uri else None
    nodes, own = _nodes()
    needs = _TIMES_STATE * state_bytes / _MEMORY_SHARE
    chosen = choose_node([node for node in nodes if node.memory_bytes >= needs], own)
    return None if chosen is None else _start_at(run, uri, chosen, own, IDLE_S)


def _nodes() -> tuple[list[Node], Node]:
    """The living nodes, and this one."""
    own_id = ray.get_runtime_context().get_node_id()
    nodes = [
        Node(
            node_id=n["NodeID"],
            labels=n.get("Labels") or {},
            takes_work=n["Resources"].get("CPU", 0.0) > 0,
            memory_bytes=n["Resources"].get("memory", math.inf),
        )
        for n in ray.nodes()
        if n["Alive"]
    ]
    own = next((n for n in nodes if n.node_id == own_id), Node(node_id=own_id, labels={}))
    return nodes, own


def _start_at(run: str, uri: str, chosen: Node, own: Node, idle_s: float) -> Any:
    for _ in range(_TRIES):
        holder = _start(run, uri, chosen, idle_s)
        if chosen is own or _node_of(holder) == chosen.node_id:
            return holder
        ray.kill(holder)  # Ray passed over the wish
    return _start(run, uri, chosen, idle_s)


class _Kept(Holder):
    """A holder that ends when it is of no use any more."""

    def __init__(self, uri: str, idle_s: float) -> None:
        super().__init__(uri)
        self._idle_s = idle_s
        self._own = ray.get_runtime_context().current_actor
        threading.Thread(target=self._watch, name="idle", daemon=True).start()

    def _watch(self) -> None:
        while (left_s := self.asked_s + self._idle_s - self._monotonic()) > 0:
            time.sleep(left_s)
        ray.kill(self._own)  # for good, as an exit would only start it again


def _start(run: str, uri: str, node: Node, idle_s: float) -> Any:
    """A soft wish for the node: when it dies the holder must be able to live elsewhere."""
    # a byte, as an actor that asks for nothing is put on any node at random
    actor = ray.remote(num_cpus=0, memory=1, max_restarts=-1)(_Kept)
    return actor.options(
        name=_name(run),
        namespace="rayburst",
        get_if_exists=True,
        lifetime="detached",
        scheduling_strategy=NodeAffinitySchedulingStrategy(node.node_id, soft=True),
    ).remote(uri, idle_s)


def _node_of(holder: Any) -> str | None:
    """Where it started; None when it has not within the time that a worker takes to start."""
    where = holder.__ray_call__.remote(lambda _: ray.get_runtime_context().get_node_id())
    try:
        return str(ray.get(where, timeout=_START_S))
    except (RayError, GetTimeoutError):
        return None


def find_peer(run: str, uri: str | None = None) -> Any | None:
    """The run's holder, or None where it is gone, or holds checkpoints of another `uri`."""
    try:
        holder = ray.get_actor(_name(run), namespace="rayburst")
    except ValueError:
        return None
    if uri is not None and _answer(holder.of, timeout_s=_FOUND_S) != uri:
        return None
    return holder


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
        made = cls(
            store.uri,
            store._backend,
            store._prefix,
            store._root,
            store._options,
            store._patience,
        )
        made._peer, made._timeout_s, made._monotonic = peer, timeout_s, monotonic
        made._distrusted = set()
        made._peer_is_faster = None
        made._lock = threading.Lock()
        made._flying = []
        return made

    _monotonic: Callable[[], float]
    _distrusted: set[str]
    _peer_is_faster: bool | None
    _lock: threading.Lock
    _flying: list[Any]

    @property
    def reads_from_peer(self) -> bool | None:
        """Whether the peer answered faster; None before the first read."""
        return self._peer_is_faster

    def announce(self, key: str, data: Buffers) -> None:
        whole = b"".join([data] if isinstance(data, bytes | memoryview) else data)
        if step_of(key) is not None:
            self._send(self._peer.offer, key, whole)
        elif self._has_room():
            self._send(self._peer.take, key, whole)

    def put(self, key: str, data: Buffers, *, if_absent: bool = False) -> Tag:
        tag = super().put(key, data, if_absent=if_absent)
        if step_of(key) is not None:
            whole = b"".join([data] if isinstance(data, bytes | memoryview) else data)
            self._send(self._peer.commit, key, whole)
        return tag

    def _send(self, method: Any, key: str, data: bytes) -> None:
        self._landed(0.0)
        with self._lock:
            self._flying.append(method.remote(key, data))

    def _has_room(self) -> bool:
        """Wait until few packs are on their way; False for a peer that is late: it goes without."""
        return self._landed(0.0) < _FLYING or self._landed(self._timeout_s) < _FLYING

    def _landed(self, timeout_s: float) -> int:
        """Forget what has arrived or failed, waiting for one of them. How many are under way."""
        with self._lock:
            flying = list(self._flying)
        if flying:
            count = 1 if timeout_s else len(flying)
            landed, _ = ray.wait(flying, num_returns=count, timeout=timeout_s)
            with self._lock:
                self._flying = [ref for ref in self._flying if ref not in landed]
        return len(self._flying)

    def drain(self, timeout_s: float) -> None:
        """Wait until the peer has taken what was sent. StoreError if it has not."""
        with self._lock:
            flying = list(self._flying)
        try:
            ray.get(flying, timeout=timeout_s)
        except (RayError, GetTimeoutError) as error:
            raise StoreError(f"{self.uri}: the peer did not take the checkpoint: {error}") from None

    def only_peer(self) -> ObjectStore:
        return _PeerOnly.over(self, self._peer, timeout_s=self._timeout_s)

    def held(self) -> tuple[str, bytes] | None:
        found: tuple[str, bytes] | None = _answer(self._peer.whole, timeout_s=self._timeout_s)
        return found

    def get_range_buffer(self, key: str, start: int, length: int) -> memoryview:
        if not key.startswith(PACKS) or key in self._distrusted:
            return super().get_range_buffer(key, start, length)
        if self._peer_is_faster is None:
            self._probe(key, start, min(length, _PROBE_BYTES))
        found = self._ask(key, start, length) if self._peer_is_faster else None
        if found is not None:
            return found
        try:
            return super().get_range_buffer(key, start, length)
        except StoreError:
            # not there, or out of reach: the slower one is better than none
            found = self._ask(key, start, length)
            if found is None:
                raise
            return found

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
        except StoreError:
            self._peer_is_faster = True  # the store cannot be read: the peer can
            return
        self._peer_is_faster = middle - begun <= self._monotonic() - middle

    def _ask(self, key: str, start: int, length: int) -> memoryview | None:
        data = _answer(self._peer.read, key, start, length, timeout_s=self._timeout_s)
        if data is None:
            self._peer_is_faster = False
        return None if data is None else memoryview(data)


class _PeerOnly(PeerStore):
    """What is put goes to the peer and is there when the call returns. Reads are as ever."""

    def announce(self, key: str, data: Buffers) -> None:
        """`put` tells the peer."""

    def put(self, key: str, data: Buffers, *, if_absent: bool = False) -> Tag:
        whole = b"".join([data] if isinstance(data, bytes | memoryview) else data)
        method = self._peer.take if step_of(key) is None else self._peer.offer
        try:
            ray.get(method.remote(key, whole), timeout=self._timeout_s)
        except (RayError, GetTimeoutError) as error:
            kind = type(error).__name__
            raise StoreError(f"{self.uri}/{key}: the peer did not take it: {kind}") from None
        return Tag(None)


def _answer(method: Any, *args: Any, timeout_s: float) -> Any:
    """What the peer says; None from one that is dead or late."""
    try:
        return ray.get(method.remote(*args), timeout=timeout_s)
    except (RayError, GetTimeoutError) as error:
        _log.warning("the checkpoint peer does not answer: %s", type(error).__name__)
        return None


def peer_step(peer: Any, timeout_s: float = 10.0) -> int | None:
    """The step that the peer holds whole; None where it holds none or does not answer."""
    answer = _answer(peer.holds, timeout_s=timeout_s)
    return None if answer is None else answer[0]
