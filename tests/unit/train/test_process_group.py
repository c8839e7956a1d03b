"""How ranks agree on whether a group is built: all go on, or all give it up."""

from __future__ import annotations

from datetime import timedelta

import pytest
import torch.distributed as dist
from torch.distributed import HashStore, PrefixStore

from rayburst.errors import PeerLostError
from rayburst.train.inplace import process_group
from rayburst.train.inplace.messages import Seat
from rayburst.train.inplace.process_group import ProcessGroup, _meet
from rayburst.train.liveness import connects


def seat(rank: int) -> Seat:
    address = ("127.0.0.1", 1)
    return Seat(generation=4, rank=rank, world=2, store=address, address=address)


def test_a_rank_that_comes_after_the_others_gave_up_does_not_wait_for_them() -> None:
    store = PrefixStore("generation-4", HashStore())
    with pytest.raises(PeerLostError, match=r"generation 4: it was given up"):
        _meet(store, "here", seat(0), lambda: True)
    with pytest.raises(PeerLostError, match="given up by another rank"):
        _meet(store, "here", seat(1), lambda: False)


def test_a_rank_that_would_give_up_goes_on_where_another_has_seen_all() -> None:
    store = PrefixStore("generation-4", HashStore())

    def after_the_other() -> bool:
        _meet(store, "here", seat(1), lambda: False)
        return True

    _meet(store, "here", seat(0), after_the_other)
    assert store.get("here") == b"on"


def test_whether_a_process_lives_is_not_asked_of_its_store() -> None:
    """It would look up the name of each that asks, while those wait who build a group."""
    group = ProcessGroup(host="127.0.0.1", timeout_s=5)
    assert group.address != group.store
    assert all(connects(*group.address, 5) for _ in range(20))


def test_a_rank_whose_group_did_not_form_meets_a_new_one_under_the_same_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(process_group, "_BUILD_TIMEOUT", timedelta(seconds=0.2))
    group = ProcessGroup(host="127.0.0.1", timeout_s=5)
    with pytest.raises(RuntimeError):
        group._connect(HashStore(), seat(0))  # rank 1 does not come
    group.forget()
    group.build(Seat(generation=5, rank=0, world=1, store=group.store, address=group.address))
    try:
        assert dist.group.WORLD is not None
        assert dist.group.WORLD.group_name == "0", "as of a rank that has just joined"
    finally:
        group.forget()
    assert not dist.is_initialized()
