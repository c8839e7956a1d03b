"""The run log: order, outages of the store, limits."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rayburst.checkpoint.store import ObjectStore
from rayburst.errors import StoreError
from rayburst.train import runlog
from rayburst.train.runlog import RunLog


class BreakableStore:
    """An object store that can be switched off, and counts what was refused."""

    def __init__(self, inner: ObjectStore) -> None:
        self.inner = inner
        self.is_down = False
        self.refused = 0
        self.refused_once = threading.Event()

    def put(self, key: str, data: bytes, **options: Any) -> None:
        if self.is_down:
            self.refused += 1
            self.refused_once.set()
            raise StoreError("connection refused")
        self.inner.put(key, data, **options)


def ticking(start: float = 1000.0) -> Callable[[], float]:
    ticks: Iterator[int] = iter(range(10**9))
    return lambda: start + next(ticks)


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return ObjectStore.open(tmp_path.as_uri())


def test_records_of_all_ranks_come_back_sorted(store: ObjectStore) -> None:
    late = RunLog(store.child("runs/r"), rank=1, world=2, clock=ticking(2000), flush_interval_s=60)
    early = RunLog(store.child("runs/r"), rank=0, world=2, clock=ticking(), flush_interval_s=60)
    late.write("step", step=1, loss=2.0)
    early.write("start", step=0)
    assert late.close()
    assert early.close()
    records = runlog.read(store, "r")
    assert [(r["rank"], r["kind"], r["world"]) for r in records] == [
        (0, "start", 2),
        (1, "step", 2),
    ]
    assert records[1]["loss"] == 2.0
    keys = [item.key for item in store.list("runs/r/log")]
    assert all(key.endswith(".jsonl") for key in keys)


def test_a_run_without_a_log_is_empty(store: ObjectStore) -> None:
    assert runlog.read(store, "nothing") == []


def test_the_thread_flushes_by_itself(store: ObjectStore) -> None:
    gate = BreakableStore(store.child("runs/r"))
    gate.is_down = True
    log = RunLog(gate, rank=0, world=1, clock=ticking(), flush_interval_s=0.01)  # type: ignore[arg-type]
    log.write("step", step=1)
    assert gate.refused_once.wait(10)
    gate.is_down = False
    assert log.close()


def test_lines_survive_an_outage_of_the_store(store: ObjectStore) -> None:
    gate = BreakableStore(store.child("runs/r"))
    log = RunLog(gate, rank=0, world=1, clock=ticking(), flush_interval_s=60)  # type: ignore[arg-type]
    log.write("step", step=1)
    gate.is_down = True
    assert not log.flush()
    log.write("step", step=2)
    assert not log.flush()
    gate.is_down = False
    log.write("step", step=3)
    assert log.close()
    assert gate.refused == 2
    assert [r["step"] for r in runlog.read(store, "r")] == [1, 2, 3]


def test_close_reports_lines_that_could_not_be_written(store: ObjectStore) -> None:
    gate = BreakableStore(store.child("runs/r"))
    gate.is_down = True
    log = RunLog(gate, rank=0, world=1, clock=ticking(), flush_interval_s=60)  # type: ignore[arg-type]
    log.write("step", step=1)
    assert not log.close()
    assert gate.refused >= 1


def test_memory_is_bounded_and_steps_go_first(store: ObjectStore) -> None:
    gate = BreakableStore(store.child("runs/r"))
    gate.is_down = True
    log = RunLog(gate, rank=0, world=1, clock=ticking(), flush_interval_s=60, keep_lines=3)  # type: ignore[arg-type]
    log.write("start", step=0)
    for step in range(1, 6):
        log.write("step", step=step)
    assert not log.flush()
    gate.is_down = False
    assert log.close()
    records = runlog.read(store, "r")
    assert [(r["kind"], r.get("step")) for r in records if r["kind"] != "lines-lost"] == [
        ("start", 0),
        ("step", 4),
        ("step", 5),
    ]
    assert [r["lines"] for r in records if r["kind"] == "lines-lost"] == [3]


def test_write_does_not_wait_for_a_store_that_hangs(store: ObjectStore) -> None:
    entered, release = threading.Event(), threading.Event()

    class Hanging:
        def put(self, key: str, data: bytes) -> None:
            entered.set()
            assert release.wait(30)
            store.child("runs/r").put(key, data)

    log = RunLog(Hanging(), rank=0, world=1, clock=ticking(), flush_interval_s=0.01)  # type: ignore[arg-type]
    log.write("step", step=1)
    assert entered.wait(10)
    log.write("step", step=2)  # would never return if it took the store's lock
    release.set()
    assert log.close()
    assert [r["step"] for r in runlog.read(store, "r")] == [1, 2]


def test_a_cut_off_line_is_left_out(store: ObjectStore) -> None:
    store.put("runs/r/log/1-0-000000.jsonl", b'{"t": 1, "kind": "start"}\n{"t": 2, "ki')
    assert [r["t"] for r in runlog.read(store, "r")] == [1]


def test_a_reader_fetches_each_object_once_and_a_longer_one_again(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = "runs/r/log/1-0-000000.jsonl", "runs/r/log/1-0-000001.jsonl"
    store.put(first, b'{"t": 1}\n')
    reader = runlog.RunLogReader(store.child("runs/r"))
    assert reader.read() == [{"t": 1}]
    got: list[str] = []
    get = ObjectStore.get
    monkeypatch.setattr(ObjectStore, "get", lambda s, key: got.append(key) or get(s, key))
    store.put(second, b'{"t": 2}\n')
    assert [r["t"] for r in reader.read()] == [1, 2]
    assert [r["t"] for r in reader.read()] == [1, 2]
    assert got == ["log/1-0-000001.jsonl"]
    store.put(first, b'{"t": 1}\n{"t": 1.5}\n')  # the first write's answer had been lost
    assert [r["t"] for r in reader.read()] == [1, 1.5, 2]
