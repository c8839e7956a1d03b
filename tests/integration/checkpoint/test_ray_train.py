"""Under Ray Train: reported without an upload, back after a failure, held by a peer."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import pytest
import ray
import torch

from rayburst.checkpoint.checkpointer import Checkpointer
from rayburst.checkpoint.peers import (
    Node,
    choose_node,
    find_peer,
    peer_step,
    place_peer,
    release_peer,
    with_peer,
)
from rayburst.errors import CheckpointError

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes in two zones; the training fits on the first."""
    from ray.cluster_utils import Cluster
    from training_cluster import OPEN, QUICK  # not above: Ray's workers import this file

    # explicit, or Ray turns tokens on for this process and keeps one in the user's home
    with mock.patch.dict(os.environ, {**OPEN, **QUICK}):
        near = {"rayburst.io/zone": "near"}
        head = {"num_cpus": 2, "include_dashboard": False, "labels": near}
        made = Cluster(initialize_head=True, head_node_args=head)
        made.far = made.add_node(num_cpus=0, labels={"rayburst.io/zone": "far"})
        ray.init(address=made.address, log_to_driver=False)
        yield made
        ray.shutdown()
        made.shutdown()


def train_loop(config: dict[str, Any]) -> None:
    from rayburst.checkpoint.checkpointer import Checkpointer
    from rayburst.checkpoint.ray_train import checkpoints_uri, last_reported, report

    state = {"w": torch.zeros(1000), "step": 0}
    with Checkpointer(checkpoints_uri()) as checkpoints:
        where = last_reported()
        if where is not None:
            uri, step = where
            assert uri == checkpoints.store.uri
            found = checkpoints.load(state, step=step)
            assert found.data == {"offset": step * 10}
        for step in range(state["step"] + 1, 5):
            state["w"] += step
            state["step"] = step
            saved = checkpoints.save(state, step=step, data={"offset": step * 10})
            report({"step": step, "resumed": where is not None}, saved)
            if step == 2 and where is None:
                raise RuntimeError("this worker fails once")


def test_a_run_goes_on_from_what_was_reported(cluster: Any, tmp_path: Path) -> None:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from rayburst.checkpoint.ray_train import where_of

    result = TorchTrainer(
        train_loop,
        scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 0.5}),
        run_config=RunConfig(
            storage_path=str(tmp_path), name="run", failure_config=FailureConfig(max_failures=1)
        ),
    ).fit()
    assert result.metrics == {"step": 4, "resumed": True}
    uri, step = where_of(result.checkpoint)
    assert (uri, step) == (str(tmp_path / "run" / "checkpoints"), 4)
    with Checkpointer(uri) as checkpoints:
        assert torch.equal(checkpoints.load().state["w"], torch.full((1000,), 10.0))
    plain = ray.train.Checkpoint.from_directory(tmp_path)
    with pytest.raises(CheckpointError, match="was not reported by"):
        where_of(plain)


def test_a_peer_in_another_zone_holds_the_newest_snapshot(cluster: Any, tmp_path: Path) -> None:
    uri = str(tmp_path / "store")
    state = {"w": torch.arange(6_000_000.0), "n": {"x": 1}}
    run = tmp_path.name  # a second try must not meet the first one's peer
    store = with_peer(run, uri)
    peer = place_peer(run, uri)
    with Checkpointer(store) as checkpoints:
        checkpoints.save(state, step=1)
        state["w"][:10] = -1
        checkpoints.save(state, step=2)
        store.drain(60)
        where = peer.__ray_call__.remote(lambda _: ray.get_runtime_context().get_node_id())
        assert ray.get(where) == cluster.far.node_id
        assert peer_step(peer) == 2
        # the store is gone for good: the peer has all of it
        (tmp_path / "store").rename(tmp_path / "gone")
        found = checkpoints.load()
        assert torch.equal(found.state["w"], state["w"])
        assert store.reads_from_peer is True
        # the store is back and the peer's node is cut off
        shutil.rmtree(tmp_path / "store", ignore_errors=True)
        (tmp_path / "gone").rename(tmp_path / "store")
        cluster.remove_node(cluster.far, allow_graceful=False)
        state["w"][:10] = -2
        checkpoints.save(state, step=3)
        assert torch.equal(checkpoints.load().state["w"], state["w"])
        assert store.reads_from_peer is False
    release_peer(run)
    assert find_peer(run) is None


def test_a_peer_that_nobody_uses_any_more_ends(cluster: Any, tmp_path: Path) -> None:
    from support import wait_for

    run = tmp_path.name
    peer = place_peer(run, str(tmp_path), idle_s=1.0)
    process = ray.get(peer.__ray_call__.remote(lambda _: os.getpid()))
    wait_for(lambda: find_peer(run) is None or None, what="the holder ends by itself")
    wait_for(lambda: not psutil.pid_exists(process) or None, what="its process ends")


def test_the_peer_goes_far_away() -> None:
    def node(name: str, zone: str, pool: str) -> Node:
        return Node(node_id=name, labels={"rayburst.io/zone": zone, "rayburst.io/pool": pool})

    own = node("a", "z1", "spot")
    same, other_pool = node("b", "z1", "spot"), node("c", "z1", "rack")
    other_zone, bare = node("d", "z2", "spot"), Node(node_id="e", labels={})
    assert choose_node([own, same, other_pool, other_zone, bare], own) == other_zone
    assert choose_node([own, same, other_pool, bare], own) == other_pool
    assert choose_node([own, same], own) == same
    assert choose_node([own], own) is None
    head = Node(node_id="z", labels={"rayburst.io/zone": "z1"}, takes_work=False)
    assert choose_node([own, other_zone, head], own) == head
