"""The run log: what every rank of a training run did, as JSON lines on the object store.

    with RunLog(ObjectStore.open("s3://b/runs/mine"), rank=3, world=4, clock=time.time) as log:
        log.write("step", step=17, loss=2.5, tokens=8192, duration_s=0.21)
    records = read(ObjectStore.open("s3://b"), "mine")   # of all ranks and restarts, sorted by t

Objects are `log/<start_ms>-<rank>-<seq>.jsonl` in the run's folder, written by a background thread
at least each second and never changed after. `write` only appends to a list: it
waits for nothing. While the store cannot be reached the lines stay in memory and the next flush
takes them along; beyond `keep_lines` the oldest step records go first, and a record says how many.
What this process moves to and from object stores while the log is open is told in `traffic`
records, for the ledger.

A process that is killed loses at most its last second. The module knows nothing of what the records
mean.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any

from rayburst.checkpoint.store import ObjectStore
from rayburst.checkpoint.traffic import TRAFFIC
from rayburst.errors import StoreError

__all__ = ["FLUSH_INTERVAL_S", "RunLog", "RunLogReader", "read", "read_folder"]

FLUSH_INTERVAL_S = 1.0
_READERS = 8
_FOLDER = "log"
_TRAFFIC_BYTES = 2**16  # less is told with what comes later
Record = dict[str, Any]
_logger = logging.getLogger(__name__)


class RunLog:
    """Writer of one rank's records; `close()`, or the end of the `with` block, flushes the rest."""

    def __init__(
        self,
        folder: ObjectStore,
        *,
        rank: int,
        world: int,
        clock: Callable[[], float],
        flush_interval_s: float = FLUSH_INTERVAL_S,
        keep_lines: int = 100_000,
    ) -> None:
        self._store = folder
        self._clock = clock
        self._rank, self._world = rank, world
        self._prefix = f"{_FOLDER}/{int(clock() * 1000)}-{rank}"
        self._interval_s = flush_interval_s
        self._keep_lines = keep_lines
        self._pending: list[Record] = []
        self._lost = 0
        self._sequence = 0
        self._lock = threading.Lock()  # of the list; never held while the store is asked
        self._flushing = threading.Lock()
        self._closing = threading.Event()
        TRAFFIC.take()  # what was moved before is of no run
        self._thread = threading.Thread(target=self._run, name="run-log", daemon=True)
        self._thread.start()

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def write(self, kind: str, **fields: Any) -> None:
        """Add a record; `t`, `rank` and `world` are filled in."""
        record = {**self._record(kind), **fields}
        with self._lock:
            self._pending.append(record)
            if len(self._pending) > self._keep_lines:
                self._forget_one()

    def _record(self, kind: str) -> Record:
        return {"t": self._clock(), "kind": kind, "rank": self._rank, "world": self._world}

    def move(self, *, rank: int, world: int) -> None:
        """From now on this process is another rank."""
        self._rank, self._world = rank, world

    def flush(self) -> bool:
        """Write what is pending now. False when the store refused: the lines are kept."""
        with self._flushing:
            with self._lock:
                batch, self._pending = self._pending, []
                lost, self._lost = self._lost, 0
            if not batch:
                return True
            least = 1 if self._closing.is_set() else _TRAFFIC_BYTES
            sent, received = TRAFFIC.take(at_least=least)
            if sent or received:
                moved = {"sent_bytes": sent, "received_bytes": received}
                batch.append({**self._record("traffic"), **moved})
            if lost:
                batch.append({**batch[-1], "kind": "lines-lost", "lines": lost})
            body = "".join(json.dumps(record) + "\n" for record in batch).encode()
            try:
                self._store.put(f"{self._prefix}-{self._sequence:06}.jsonl", body)
            except StoreError as error:
                _logger.warning("run log: %d lines wait for the store: %s", len(batch), error)
                self._restore(batch, lost)
                return False
            self._sequence += 1
            return True

    def close(self, timeout_s: float = 5.0) -> bool:
        """Flush and end the thread; False when that did not work within `timeout_s`."""
        self._closing.set()
        self._thread.join(timeout_s)
        with self._lock:
            return not self._thread.is_alive() and not self._pending

    def _run(self) -> None:
        while not self._closing.wait(self._interval_s):
            self.flush()
        self.flush()

    def _restore(self, batch: list[Record], lost: int) -> None:
        with self._lock:
            kept = batch[:-1] if lost else batch
            self._pending = kept + self._pending
            self._lost += lost

    def _forget_one(self) -> None:
        """Drop the oldest step record: the others are few and tell more."""
        for i, record in enumerate(self._pending):
            if record["kind"] == "step":
                del self._pending[i]
                break
        else:
            del self._pending[0]
        self._lost += 1


def read(store: ObjectStore, run: str) -> list[Record]:
    """All records of a run below `runs/` of the store's root, sorted by time; may be empty."""
    return read_folder(store.child(f"runs/{run}"))


def read_folder(folder: ObjectStore) -> list[Record]:
    """All records in a run's folder, sorted by time; empty when there are none.

    A line that is cut off (a local folder on a full disk) is left out and reported in the log.
    """
    return RunLogReader(folder).read()


class RunLogReader:
    """Reads a run's folder again and again: every object of its log is fetched once."""

    def __init__(self, folder: ObjectStore) -> None:
        self._folder = folder
        self._fetched: dict[tuple[str, int], list[Record]] = {}

    def read(self) -> list[Record]:
        """As `read_folder`. The records are shared between calls: leave them as they are."""
        infos = [info for info in self._folder.list(_FOLDER) if info.key.endswith(".jsonl")]
        # A write whose answer was lost is done again with more lines: the size tells them apart.
        listed = [(info.key, info.size_bytes) for info in infos]
        missing = [one for one in listed if one not in self._fetched]
        if missing:
            with ThreadPoolExecutor(_READERS) as pool:
                bodies = pool.map(self._folder.get, [key for key, _ in missing])
                for one, body in zip(missing, bodies, strict=True):
                    self._fetched[one] = list(self._records(one[0], body))
        records = [record for one in listed for record in self._fetched[one]]
        return sorted(records, key=lambda record: float(record["t"]))

    def _records(self, key: str, body: bytes) -> Iterator[Record]:
        for line in body.splitlines():
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                _logger.warning("%s/%s holds a line that is no JSON", self._folder.uri, key)
