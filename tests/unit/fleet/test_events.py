"""The node event log: idempotent, ordered, and safe on disk while the store is away."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rayburst.checkpoint.store import ObjectStore
from rayburst.errors import StoreError
from rayburst.fleet.events import EventLog, NodeEvent

UP = NodeEvent(
    t=10.5,
    kind="up",
    node="rack-0001",
    pool="rack",
    market="on-prem",
    price_usd_per_hour=0.35,
    why="joined",
)


class AwayStore:
    """A store that refuses every write until it is back; counts what it refused."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self.away = True
        self.refused = 0

    def put(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        if self.away:
            self.refused += 1
            raise StoreError("503")
        self._store.put(key, data, if_absent=if_absent)

    def __getattr__(self, name: str):
        return getattr(self._store, name)


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return ObjectStore.open(tmp_path / "store")


def test_events_come_back_in_order_of_time(store, tmp_path):
    log = EventLog(store, spool=tmp_path / "spool")
    gone = replace(UP, t=20.0, kind="gone", why="taken")
    requested = replace(UP, t=1.0, kind="requested", price_usd_per_hour=None)
    for event in (gone, UP, requested):
        log.append(event)
    assert log.read() == [requested, UP, gone]


def test_appending_twice_is_appending_once(store, tmp_path):
    log = EventLog(store, spool=tmp_path / "spool")
    log.append(UP)
    log.append(UP)
    assert log.read() == [UP]
    assert len(list(store.list("events/"))) == 1


def test_an_event_survives_the_store_being_away_and_the_writer_dying(store, tmp_path):
    away = AwayStore(store)
    EventLog(away, spool=tmp_path / "spool").append(UP)
    assert away.refused == 1
    assert list(store.list("events/")) == []

    successor = EventLog(away, spool=tmp_path / "spool")
    assert successor.read() == [UP], "what waits on disk is part of the log"
    assert successor.flush() == 1
    away.away = False
    assert successor.flush() == 0
    assert [info.key for info in store.list("events/")] == [UP.key]
    assert successor.read() == [UP]
