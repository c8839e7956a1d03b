"""When a spread model's state goes to the store, and when to a peer's memory alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_peer import FakePeer

from rayburst.checkpoint.checkpointer import Checkpointer
from rayburst.checkpoint.peers import PeerStore, peer_step
from rayburst.checkpoint.store import ObjectStore
from rayburst.train.keeper import FIRST_S
from rayburst.train.runlog import RunLog, read_folder
from rayburst.train.spread_keeper import SpreadKeeper
from rayburst.train.surroundings import find_surroundings


class Known:
    """A peer that is found as soon as somebody saves."""

    def __init__(self, holder: FakePeer) -> None:
        self.holder, self.is_found = holder, False

    def find(self, store: ObjectStore) -> ObjectStore:
        return store

    def ready(self, store: ObjectStore, *, places: bool, needs_bytes: int) -> ObjectStore:
        self.is_found = True
        return store if isinstance(store, PeerStore) else PeerStore.over(store, self.holder)


class World:
    """One rank, a clock that stands still, and a state that each step changes."""

    def __init__(self, folder: Path, holder: FakePeer) -> None:
        self.now_s, self.step = 1000.0, 0
        self.holder, self.folder = holder, folder
        where = find_surroundings(str(folder), None, 1.0)
        self.peer = Known(holder)
        self.log = RunLog(where.folder, rank=0, world=1, clock=lambda: self.now_s)
        self.keeper = SpreadKeeper(
            replace(where, peer=self.peer),
            self.log,
            every_s=100.0,
            keep=3,
            clock=lambda: self.now_s,
            peer=self.peer,
        )

    def train(self, *, blocked_s: float = 0.1) -> str:
        """One step; what was saved after it."""
        self.step += 1
        self.keeper.poll()
        if not self.keeper.wants():
            return "nothing"
        words: dict[str, Any] = {"about": {}, "metrics": {}, "began_s": self.now_s - blocked_s}
        state = {"w": torch.full((1000,), float(self.step))}
        if self.keeper.snapshots(state, step=self.step, **words):
            self.keeper._checkpoints.wait()
            return "snapshot"
        self.keeper.save(state, step=self.step, **words, wait=True)
        return "checkpoint"

    def on_store(self) -> int | None:
        with Checkpointer(str(self.folder / "checkpoints")) as checkpoints:
            return checkpoints.latest()


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    made = World(tmp_path, FakePeer.installed(str(tmp_path / "checkpoints"), monkeypatch))
    yield made
    made.keeper.close()
    made.log.close()


def test_between_checkpoints_a_peer_gets_snapshots_that_the_store_knows_nothing_of(
    world: World,
) -> None:
    assert world.train() == "checkpoint", "without one the model could only begin again"
    assert world.train() == "snapshot", "the first one is at once"
    assert (peer_step(world.holder), world.on_store()) == (2, 1)

    world.now_s += 4.9  # a tenth of a second is two percent of five
    assert world.train() == "nothing"
    world.now_s += 0.2
    assert world.train() == "snapshot"
    assert (peer_step(world.holder), world.on_store()) == (4, 1)

    world.now_s += 100
    assert world.train() == "checkpoint", "its time comes whatever the peer has"
    assert (peer_step(world.holder), world.on_store()) == (5, 5)
    world.log.flush()
    kinds = [r["kind"] for r in read_folder(ObjectStore.open(str(world.folder)))]
    assert [k for k in kinds if k in ("checkpoint", "snapshot", "committed")] == [
        *("checkpoint", "committed"),
        *("snapshot", "snapshot"),
        *("checkpoint", "committed"),
    ]


def test_a_peer_that_died_is_left_alone_for_a_while_and_checkpoints_go_on(world: World) -> None:
    assert [world.train(), world.train()] == ["checkpoint", "snapshot"]
    world.holder.dead = True
    world.now_s += 6
    assert world.train() == "snapshot"
    world.now_s += FIRST_S - 0.1
    assert world.train() == "nothing", "the last one came to nothing, which costs time as well"
    world.holder.dead = False
    world.now_s += 100
    assert world.train() == "checkpoint"
    assert (peer_step(world.holder), world.on_store()) == (5, 5)


def test_without_a_peer_there_are_checkpoints_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = World(tmp_path, FakePeer(str(tmp_path)))
    monkeypatch.setattr(alone.peer, "ready", lambda store, **words: store)
    assert alone.train() == "checkpoint"
    alone.now_s += 50
    assert alone.train() == "nothing"
    alone.keeper.close()
    alone.log.close()
