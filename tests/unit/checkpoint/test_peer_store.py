"""The store with a peer's memory before it, with a holder in this process instead of an actor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fake_peer import FakePeer
from support import wait_for

from rayburst.checkpoint.checkpointer import Checkpointer
from rayburst.checkpoint.peers import PeerStore, peer_step
from rayburst.checkpoint.store import ObjectStore
from rayburst.errors import CheckpointDamagedError, StoreError


@pytest.fixture
def peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakePeer:
    return FakePeer.installed(str(tmp_path), monkeypatch)


def test_the_holder_keeps_the_newest_and_lets_the_old_one_go(
    peer: FakePeer, tmp_path: Path
) -> None:
    store = PeerStore.over(ObjectStore.open(tmp_path), peer)
    state = {"w": torch.arange(300_000.0)}
    with Checkpointer(store) as checkpoints:
        checkpoints.save(state, step=1)
        held = peer.holder.holds()[1]
        state["w"] += 1
        checkpoints.save(state, step=2)
    step, size = peer.holder.holds()
    assert (step, peer_step(peer)) == (2, 2)
    assert abs(size - held) < 2000


def test_the_peer_serves_when_the_packs_are_gone(peer: FakePeer, tmp_path: Path) -> None:
    store = PeerStore.over(ObjectStore.open(tmp_path), peer)
    state = {"w": torch.arange(300_000.0)}
    with Checkpointer(store) as checkpoints:
        checkpoints.save(state, step=1)
        state["w"][:5] = -1.0
        checkpoints.save(state, step=2)
        for info in list(store.list("packs")):
            store.delete(info.key)
        assert torch.equal(checkpoints.load().state["w"], state["w"])
        assert store.reads_from_peer is True


def test_a_peer_that_lies_is_corrected_and_one_that_died_is_passed_over(
    peer: FakePeer, tmp_path: Path
) -> None:
    store = PeerStore.over(ObjectStore.open(tmp_path), peer)
    state = {"w": torch.arange(300_000.0)}
    with Checkpointer(store) as checkpoints:
        saved = checkpoints.save(state, step=1)
        pack = next(info.key for info in store.list("packs"))
        peer.holder._objects[pack] = b"x" * saved.sent_bytes
        store._peer_is_faster = True
        assert torch.equal(checkpoints.load().state["w"], state["w"])
        assert pack in store._distrusted
        peer.dead = True
        store._peer_is_faster, store._distrusted = True, set()
        assert torch.equal(checkpoints.load().state["w"], state["w"])
        assert store.reads_from_peer is False
        checkpoints.save(state, step=2)
        assert checkpoints.latest() == 2
    assert peer_step(peer) is None


def test_a_new_holder_pulls_what_it_was_not_given(peer: FakePeer, tmp_path: Path) -> None:
    with Checkpointer(str(tmp_path)) as checkpoints:
        checkpoints.save({"w": torch.arange(300_000.0)}, step=1)
    key = "manifests/000000000001.json"
    assert peer.holder.commit(key, ObjectStore.open(tmp_path).get(key)) == 1
    assert peer.holder.holds()[1] == 1_200_000


def test_a_snapshot_that_the_store_never_got_is_found_at_the_peer(
    peer: FakePeer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store stops taking packs: nothing is acknowledged, and the newest state is not lost."""
    plain = ObjectStore.open(tmp_path)
    state = {"w": torch.arange(5_000_000.0), "n": 1}
    put = ObjectStore.put

    def refuse(store: ObjectStore, key: str, data: Any, *, if_absent: bool = False) -> None:
        if key.startswith("packs/000000000002"):
            wait_for(lambda: True if peer_step(peer) == 2 else None, what="step 2 at the peer")
            raise StoreError("no packs today")
        put(store, key, data, if_absent=if_absent)

    monkeypatch.setattr(ObjectStore, "put", refuse)
    with Checkpointer(PeerStore.over(plain, peer)) as checkpoints:
        checkpoints.save(state, step=1)
        state["w"] += 1
        state["n"] = 2
        with pytest.raises(StoreError, match="no packs today"):
            checkpoints.save(state, step=2)
    with Checkpointer(PeerStore.over(plain, peer)) as checkpoints:
        assert checkpoints.latest() == 1
        found = checkpoints.load()
        assert (found.step, found.committed, found.state["n"]) == (2, False, 2)
        assert torch.equal(found.state["w"], state["w"])
        assert checkpoints.load(step=1).committed is True
        # what only the peer has is proven as well, and the store's newest is there to fall back on
        pack = next(key for key in peer.holder._objects if key.startswith("packs/000000000002"))
        peer.holder._objects[pack] = b"x" * len(peer.holder._objects[pack])
        with pytest.raises(CheckpointDamagedError, match=pack):
            checkpoints.load()
        assert checkpoints.load(fallback=True).step == 1
    with Checkpointer(PeerStore.over(plain, peer)) as checkpoints:
        monkeypatch.setattr(ObjectStore, "put", put)
        assert checkpoints.save(state, step=2).step == 2
        assert checkpoints.load().committed is True


def test_a_snapshot_for_the_peer_alone_leaves_the_store_as_it_is(
    peer: FakePeer, tmp_path: Path
) -> None:
    plain = ObjectStore.open(tmp_path)
    state = {"frozen": torch.arange(300_000.0), "w": torch.zeros(1000)}

    def on_store() -> set[str]:
        return {info.key for info in plain.list()}

    with Checkpointer(PeerStore.over(plain, peer)) as checkpoints:
        checkpoints.save(state, step=1)
        before = on_store()
        for step in (2, 3):
            state["w"] += 1
            snapshot = checkpoints.async_save(state, step=step, only_peer=True).result()
            assert (snapshot.reused_bytes, snapshot.sent_bytes) == (1_200_000, 4000)
        assert on_store() == before
        assert peer_step(peer) == 3
    with Checkpointer(PeerStore.over(plain, peer)) as checkpoints:
        found = checkpoints.load()
        assert (found.step, found.committed) == (3, False)
        assert torch.equal(found.state["w"], state["w"])
        assert torch.equal(found.state["frozen"], state["frozen"])
        state["w"] += 1
        checkpoints.save(state, step=4)
        parent = checkpoints.load().manifest.parent
        assert parent is not None and parent.step == 1, "the store builds on what it has"
        state["w"] += 1
        peer.dead = True
        with pytest.raises(StoreError, match="the peer did not take it"):
            checkpoints.async_save(state, step=5, only_peer=True).result()
        assert checkpoints.load().step == 4
    with Checkpointer(str(tmp_path)) as checkpoints:
        with pytest.raises(StoreError, match="no peer holds snapshots"):
            checkpoints.async_save(state, step=5, only_peer=True).result()
        assert torch.equal(checkpoints.load().state["w"], state["w"] - 1)


def test_a_peer_speaks_when_the_store_cannot(
    peer: FakePeer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = {"w": torch.arange(300_000.0)}
    with Checkpointer(PeerStore.over(ObjectStore.open(tmp_path), peer)) as checkpoints:
        checkpoints.save(state, step=1)

    def unreachable(*_: Any) -> Any:
        raise StoreError("out of reach")

    for call in ("list", "get_buffer", "get_range_buffer"):
        monkeypatch.setattr(ObjectStore, call, unreachable)
    with Checkpointer(PeerStore.over(ObjectStore.open(tmp_path), peer)) as checkpoints:
        assert torch.equal(checkpoints.load().state["w"], state["w"])
        peer.dead = True
        with pytest.raises(StoreError, match="out of reach"):
            checkpoints.load()


def test_packs_of_saves_that_came_to_nothing_do_not_pile_up(peer: FakePeer) -> None:
    for number in range(10):
        peer.holder.take(f"packs/{number:012d}-x/0-00000", b"1" * 100)
    assert peer.holder.holds() == (None, 200)
