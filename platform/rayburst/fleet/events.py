"""The fleet's memory: one object per node event, append-only, on the object store.

    log = EventLog(ObjectStore.open(uri), spool=fleet.spool)
    log.append(NodeEvent(t=..., kind="up", node="rack-3f2c", pool="rack", ...))
    for event in log.read(): ...

An event's key holds its time, node and kind, so writing it twice is writing it once. `append`
returns when the event is safe: on the store, or on this machine's disk until `flush` gets it there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rayburst.checkpoint.store import ObjectStore, StoreOptions
from rayburst.errors import ObjectExistsError, StoreError
from rayburst.fleet.files import write_atomically

EventKind = Literal["requested", "up", "notice", "draining", "gone"]
_PREFIX = "events/"

IMPATIENT = StoreOptions(retries=1, retry_s=3.0, request_timeout_s=3.0, connect_timeout_s=1.0)
"""For writers that have a spool: a store that is away must not hold up the agent."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeEvent:
    """Something that happened to a node.

    Attributes:
        t: unix seconds at which it happened, not at which it was written.
        price_usd_per_hour: price of the node when it was launched; None is unknown.
        deadline: unix seconds; only with a notice.
    """

    t: float
    kind: EventKind
    node: str
    pool: str
    market: str
    price_usd_per_hour: float | None
    why: str
    deadline: float | None = None

    @property
    def key(self) -> str:
        return f"{_PREFIX}{round(self.t * 1000):015d}-{self.node}-{self.kind}.json"


class EventLog:
    """Append to and read the log. `store` may be down: see `append`."""

    def __init__(self, store: ObjectStore, *, spool: Path) -> None:
        self._store = store
        self._spool = spool

    def append(self, event: NodeEvent) -> None:
        """Make one event durable. Idempotent."""
        self._spool.mkdir(parents=True, exist_ok=True)
        file = self._spool / event.key.removeprefix(_PREFIX)
        write_atomically(file, json.dumps(asdict(event)))
        self._send(file)

    def flush(self) -> int:
        """Send what waits on disk; returns how many events still wait."""
        if not self._spool.is_dir():
            return 0
        waiting = sorted(self._spool.glob("[0-9]*.json"))
        for sent, file in enumerate(waiting):
            if not self._send(file):
                return len(waiting) - sent
        return 0

    def read(self) -> list[NodeEvent]:
        """All events, oldest first, those that still wait on this machine's disk included."""
        return sorted(set(self._stored()) | set(self._spooled()), key=lambda e: (e.t, e.key))

    def _send(self, file: Path) -> bool:
        try:
            self._store.put(_PREFIX + file.name, file.read_bytes(), if_absent=True)
        except ObjectExistsError:
            pass  # an earlier send arrived though its answer did not
        except StoreError:
            return False
        file.unlink(missing_ok=True)
        return True

    def _stored(self) -> Iterator[NodeEvent]:
        keys = [info.key for info in self._store.list(_PREFIX)]
        with ThreadPoolExecutor(max_workers=16) as pool:
            for data in pool.map(self._store.get, keys):
                yield _parse(data)

    def _spooled(self) -> Iterator[NodeEvent]:
        for file in sorted(self._spool.glob("[0-9]*.json")):
            yield _parse(file.read_bytes())


def _parse(data: bytes) -> NodeEvent:
    raw: dict[str, Any] = json.loads(data)
    return NodeEvent(**raw)
