"""The pure parts: cutting, trees, planning, retention, progress, staging."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rayburst.checkpoint.alike import shares
from rayburst.checkpoint.chunks import (
    LARGEST_BYTES,
    SMALLEST_BYTES,
    chunk_bytes_for,
    cut,
    digest_of,
)
from rayburst.checkpoint.planner import StateSavePlanner, decode_leaf, encode_leaf
from rayburst.checkpoint.progress import Bandwidth, Progress
from rayburst.checkpoint.protocol import manifest_key, pack_key, save_of, step_of
from rayburst.checkpoint.retention import Best, Retention, keep
from rayburst.checkpoint.staging import HostBuffer
from rayburst.checkpoint.tree import Outline, flatten, rebuild
from rayburst.errors import CheckpointError

LEAVES = st.one_of(
    st.integers(), st.text(max_size=5), st.none(), st.booleans(), st.just(()), st.just({})
)
TREES = st.dictionaries(
    st.one_of(st.text(alphabet="abc", min_size=1, max_size=3), st.integers(0, 3)),
    st.recursive(
        LEAVES,
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.dictionaries(st.text(alphabet="xyz", min_size=1, max_size=3), inner, max_size=3),
        ),
        max_leaves=10,
    ),
    max_size=4,
)


@given(st.integers(0, 2**40))
def test_chunks_make_up_the_bytes(size: int) -> None:
    chunk_bytes = chunk_bytes_for(size)
    assert SMALLEST_BYTES <= chunk_bytes <= LARGEST_BYTES
    assert chunk_bytes & (chunk_bytes - 1) == 0
    if size < 2**31:
        pieces = cut(size, chunk_bytes)
        assert sum(length for _, length in pieces) == size
        assert [start for start, _ in pieces] == list(range(0, size, chunk_bytes))


@given(TREES)
def test_a_tree_comes_back_exactly(tree: dict[object, object]) -> None:
    try:
        leaves, paths = flatten(tree)
    except CheckpointError as error:
        assert "both named" in str(error)  # {"1": …, 1: …}
        return
    back = rebuild(leaves, paths)
    assert repr(back) == repr(tree)


@given(TREES, TREES)
def test_an_outline_finds_the_leaves_or_says_that_the_shape_changed(
    tree: dict[object, object], other: dict[object, object]
) -> None:
    try:
        outline, named = Outline(tree), flatten(other)[0]
    except CheckpointError:
        return
    assert repr(outline.leaves(tree) or []) == repr(list(outline.named.values()))
    found = outline.leaves(other)
    if found is not None:
        assert repr(dict(zip(outline.names, found, strict=True))) == repr(named)
        assert outline.paths == flatten(other)[1]


def test_keys_that_would_be_lost_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"both named 'a\.b'"):
        flatten({"a": {"b": 1}, "a.b": 2})
    with pytest.raises(CheckpointError, match="str or int"):
        flatten({(1, 2): 3})


@pytest.mark.parametrize("value", [1, 0.1, "x", None, True, [1, [2.5]], {"a": {"b": []}}, {}])
def test_plain_leaves_become_json(value: object) -> None:
    encoded = encode_leaf(value)
    assert encoded.encoding == "json"
    assert decode_leaf("n", "json", encoded.getbuffer(), unpickle=False) == value


@pytest.mark.parametrize("value", [(1, 2), {1: 2}, b"raw", torch.Size([2])])
def test_other_leaves_are_saved_by_torch(value: object) -> None:
    encoded = encode_leaf(value)
    assert encoded.encoding == "torch"
    assert decode_leaf("n", "torch", encoded.getbuffer(), unpickle=False) == value


def test_a_pickled_leaf_needs_trust() -> None:
    encoded = encode_leaf(math.sqrt)
    with pytest.raises(CheckpointError, match="unpickle=True"):
        decode_leaf("f", "torch", encoded.getbuffer(), unpickle=False)
    assert decode_leaf("f", "torch", encoded.getbuffer(), unpickle=True) is math.sqrt


def test_replicated_state_is_dealt_over_the_replicas() -> None:
    state = {"big": torch.zeros(20_000_000), **{f"s{i}": torch.zeros(1000) for i in range(50)}}
    planner = StateSavePlanner()
    planner.set_up_planner(state)
    plan = planner.create_local_plan()
    plans, metadata = planner.create_global_plan([plan] * 4)
    load = [
        sum(4 * math.prod(item.tensor_data.chunk.sizes) for item in p.items if item.tensor_data)
        for p in plans
    ]
    assert sum(load) == 80_000_000 + 50 * 4000
    assert max(load) <= 1.1 * min(load)
    assert sum(math.prod(c.sizes) for c in metadata.state_dict_metadata["big"].chunks) == 20_000_000


def test_keys_and_their_meaning() -> None:
    assert step_of(manifest_key(42)) == 42
    assert step_of("manifests/other.json") is None
    assert save_of(pack_key("s-1", 2, 3)) == "s-1"
    assert save_of("leases/s-1.json") == "s-1"
    assert save_of("latest.json") is None


def test_an_unknown_digest_lists_the_known() -> None:
    with pytest.raises(CheckpointError, match="sha256, xxh3-128"):
        digest_of("md5")


def test_retention_gives_reasons() -> None:
    metrics = {step: {"loss": abs(step - 42)} for step in range(0, 100, 7)}
    policy = Retention(newest=2, every=35, best=Best(metric="loss", count=1))
    kept = keep(policy, list(metrics), metrics, frozenset({14}))
    assert kept == {
        98: "one of the newest 2",
        91: "one of the newest 2",
        70: "every 35",
        35: "every 35",
        0: "every 35",
        14: "pinned",
        42: "best loss",
    }


@given(st.sets(st.integers(0, 1000)), st.integers(1, 5))
def test_the_newest_always_stay(steps: set[int], newest: int) -> None:
    kept = keep(Retention(newest=newest), list(steps), {}, frozenset())
    assert set(kept) == set(sorted(steps)[-newest:])


def test_a_policy_that_keeps_nothing_is_refused() -> None:
    with pytest.raises(CheckpointError, match="always stays"):
        Retention(newest=0)
    with pytest.raises(CheckpointError, match="'min' and 'max'"):
        Best(metric="loss", mode="low")  # type: ignore[arg-type]


def test_bandwidth_counts_overlapping_transfers_once() -> None:
    now = [0.0]
    bandwidth = Bandwidth(lambda: now[0])
    assert bandwidth.bytes_per_s() is None
    with bandwidth.transfer(100):
        now[0] = 1.0
        with bandwidth.transfer(300):
            now[0] = 2.0
    now[0] = 50.0
    assert bandwidth.bytes_per_s() == pytest.approx(200.0)


def test_progress_knows_what_is_left() -> None:
    progress = Progress(Bandwidth(lambda: 0.0))
    progress.expect(100)
    progress.reused(30)
    assert progress.left_bytes() == 70
    progress.planned(40)
    with progress.sending(40):
        pass
    assert progress.left_bytes() == 30


def test_staging_reuses_its_memory_and_keeps_its_layout() -> None:
    buffer = HostBuffer()
    state = {"a": torch.ones(1000, 3).t(), "b": torch.arange(7, dtype=torch.bfloat16), "c": [1]}
    first = buffer.stage(state)
    where, layout = first.staged["a"].data_ptr(), buffer.layout
    state["a"].mul_(2)
    state["c"].append(2)
    assert torch.equal(first.staged["a"], torch.ones(3, 1000))
    assert first.staged["c"] == [1]
    second = buffer.stage(state)
    assert second.staged["a"].data_ptr() == where
    assert buffer.layout == layout
    assert torch.equal(second.staged["a"], state["a"])
    span = buffer.span(second.staged["b"])
    assert bytes(span.buffer[span.start : span.start + span.length]) == bytes(
        state["b"].view(torch.uint8).numpy()
    )
    buffer.stage({"a": torch.ones(5)})
    assert buffer.layout == layout + 1
    assert buffer.size_bytes < 1000


def test_an_accelerator_copies_on_a_side_stream_and_is_waited_for() -> None:
    """The order of the calls, on a stand-in for torch.cuda: there is no GPU here."""
    told: list[str] = []

    class Stream:
        def wait_stream(self, other: str) -> None:
            told.append(f"the side stream waits for {other}")

        def synchronize(self) -> None:
            told.append(f"copied: {bool(torch.equal(buffer._views[0], state['a']))}")

    class Device:
        made = 0

        def Stream(self) -> Stream:
            self.made += 1
            return Stream()

        def current_stream(self) -> str:
            return "training"

        @contextmanager
        def stream(self, stream: Stream) -> Iterator[None]:
            told.append("side stream on")
            yield
            told.append("side stream off")

    buffer, state, device = HostBuffer(), {"a": torch.ones(3)}, Device()
    buffer.stage(state)
    for _ in range(2):
        state["a"] += 1
        buffer._copy_beside(device, [state["a"]])
    once = ["the side stream waits for training", "side stream on", "side stream off"]
    assert told == [*once, "copied: True"] * 2
    assert device.made == 1


@given(st.lists(st.integers(0, 1000), max_size=200), st.integers(1, 8))
def test_shares_are_runs_of_equal_size(sizes: list[int], world: int) -> None:
    starts = shares(sizes, world)
    assert len(starts) == world + 1
    assert (starts[0], starts[-1]) == (0, len(sizes))
    assert starts == sorted(starts)
    got = [sum(sizes[a:b]) for a, b in pairwise(starts)]
    assert sum(got) == sum(sizes)
    fair, most = sum(sizes) / world, max(sizes, default=0)
    assert all(abs(share - fair) <= most for share in got)
