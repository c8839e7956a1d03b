"""The fleet's memory: one object per node event, append-only, on the object store.

    log = EventLog(ObjectStore.open(uri), spool=fleet.spool)
    log.append(NodeEvent(t=..., kind="up", node="rack-3f2c", pool="rack", ...))
    for event in log.read(): ...

An event's key holds its time, node and kind, so writing it twice is writing it once. `append`
returns when the event is safe: on the store, or on this machine's disk until `flush` gets it there.
`Journal` is the same for any record that is a dataclass and has a key.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, Protocol, TypeVar

from rayburst.checkpoint.store import ObjectStore, StoreOptions
from rayburst.errors import ObjectExistsError, StoreError
from rayburst.fleet.files import write_atomically

EventKind = Literal["requested", "up", "notice", "draining", "gone"]
_PREFIX = "events/"
_WAITING = "[0-9]*.json"

IMPATIENT = StoreOptions(retries=1, retry_s=3.0, request_timeout_s=3.0, connect_timeout_s=1.0)
"""For writers that have a spool: a store that is away must not hold up the agent."""


class Record(Protocol):
    """A dataclass with a key that sorts by time and is the same for the same record."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def key(self) -> str: ...


R = TypeVar("R", bound=Record)


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeEvent:
    """Something that happened to a node.

    Attributes:
        t: unix seconds at which it happened, not at which it was written.
        price_usd_per_hour: price of the node when it was launched; None is unknown.
        deadline: unix seconds; only with a notice.
        read_usd_per_gb, write_usd_per_gb: price of a GB that the node reads from the object store
            and writes to it; None is unknown.
    """

    t: float
    kind: EventKind
    node: str
    pool: str
    market: str
    price_usd_per_hour: float | None
    why: str
    deadline: float | None = None
    read_usd_per_gb: float | None = None
    write_usd_per_gb: float | None = None

    @property
    def key(self) -> str:
        return f"{_PREFIX}{round(self.t * 1000):015d}-{self.node}-{self.kind}.json"


_FIELDS = frozenset(field.name for field in fields(NodeEvent))


class Journal(Generic[R]):
    """Append to and read records below one prefix. `store` may be down: see `append`."""

    def __init__(
        self, store: ObjectStore, *, spool: Path, prefix: str, parse: Callable[[bytes], R]
    ) -> None:
        self._store = store
        self._spool = spool
        self._prefix = prefix
        self._parse = parse
        self._fetched: dict[str, R] = {}  # records never change: each is fetched once

    def append(self, record: R) -> None:
        """Make one record durable. Idempotent."""
        self._spool.mkdir(parents=True, exist_ok=True)
        file = self._spool / record.key.removeprefix(self._prefix)
        write_atomically(file, json.dumps(asdict(record)))
        self._send(file)

    def flush(self) -> int:
        """Send what waits on disk; returns how many records still wait."""
        if not self._spool.is_dir():
            return 0
        waiting = sorted(self._spool.glob(_WAITING))
        for sent, file in enumerate(waiting):
            if not self._send(file):
                return len(waiting) - sent
        return 0

    def read(self, *, last: int | None = None) -> list[R]:
        """All records, or only the `last` ones, oldest first; with those that wait on disk."""
        waiting = {self._prefix + file.name: file for file in sorted(self._spool.glob(_WAITING))}
        stored = {info.key for info in self._store.list(self._prefix)}
        keys = sorted(stored | set(waiting))[-last if last else 0 :]

        def load(key: str) -> bytes:
            return self._store.get(key) if key in stored else waiting[key].read_bytes()

        missing = [key for key in keys if key not in self._fetched]
        with ThreadPoolExecutor(max_workers=16) as pool:
            for key, data in zip(missing, pool.map(load, missing), strict=True):
                self._fetched[key] = self._parse(data)
        return [self._fetched[key] for key in keys]

    def _send(self, file: Path) -> bool:
        try:
            self._store.put(self._prefix + file.name, file.read_bytes(), if_absent=True)
        except ObjectExistsError:
            pass  # an earlier send arrived though its answer did not
        except StoreError:
            return False
        file.unlink(missing_ok=True)
        return True


class EventLog(Journal[NodeEvent]):
    """The node events of a fleet."""

    def __init__(self, store: ObjectStore, *, spool: Path) -> None:
        super().__init__(store, spool=spool, prefix=_PREFIX, parse=_parse)


def _parse(data: bytes) -> NodeEvent:
    """A log outlives the version that wrote it: what is not known is passed over."""
    raw: dict[str, Any] = json.loads(data)
    return NodeEvent(**{name: raw[name] for name in raw if name in _FIELDS})
