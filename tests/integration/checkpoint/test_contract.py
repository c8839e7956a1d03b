"""One contract, three stores: SeaweedFS, a local folder and moto."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from docs_blocks import blocks

from rayburst.checkpoint.checkpointer import Checkpointer
from rayburst.checkpoint.gc import collect, pin, pinned, plan_gc, unpin
from rayburst.checkpoint.retention import Retention
from rayburst.checkpoint.store import ObjectStore
from rayburst.checkpoint.strays import abort_stray_uploads
from rayburst.checkpoint.verify import verify
from rayburst.errors import (
    CheckpointDamagedError,
    CheckpointError,
    CheckpointExistsError,
    ObjectExistsError,
    ObjectNotFoundError,
    StoreError,
)


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    import boto3

    endpoint = f"http://{host}:{port}"
    keys = {"aws_access_key_id": "any", "aws_secret_access_key": "any", "region_name": "us-east-1"}
    boto3.client("s3", endpoint_url=endpoint, **keys).create_bucket(Bucket="tests")
    yield endpoint
    server.stop()


@pytest.fixture(params=["local", "seaweed", "moto"])
def store(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> ObjectStore:
    if request.param == "local":
        return ObjectStore.open(tmp_path / "store")
    if request.param == "seaweed":
        return ObjectStore.open(request.getfixturevalue("s3_uri"))
    endpoint = request.getfixturevalue("moto")
    for name, value in {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "any",
        "AWS_SECRET_ACCESS_KEY": "any",
        "AWS_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    return ObjectStore.open(f"s3://tests/{request.node.name}".replace("[", "-").replace("]", ""))


def test_objects(store: ObjectStore) -> None:
    store.put("a/b", [b"hello ", memoryview(b"world")])
    assert store.get("a/b") == b"hello world"
    assert store.get_range("a/b", 6, 5) == b"world"
    assert store.get_range("a/b", 6, 500) == b"world"
    assert store.get_range("a/b", 11, 5) == b""
    assert store.size("a/b") == 11
    assert store.modified("a/b") is not None
    assert store.size("a") is None
    store.put("a/c", b"")
    assert sorted((i.key, i.size_bytes) for i in store.child("a").list()) == [("b", 11), ("c", 0)]
    store.delete("a/c")
    store.delete("a/c")
    assert not store.exists("a/c")
    with pytest.raises(ObjectNotFoundError, match="no/such: no such object"):
        store.get("no/such")


@pytest.mark.parametrize("algorithm", ["CRC64NVME", "SHA256"])
def test_the_block_that_tries_a_store_finds_all_it_asks_for(
    s3_uri: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    algorithm: str,
) -> None:
    monkeypatch.setenv("AWS_CHECKSUM_ALGORITHM", algorithm)
    (block,) = [b for b in blocks("python") if b.page.name == "stores.md"]
    exec(compile(block.text.replace("s3://bucket/try", s3_uri), str(block), "exec"), {})
    told = capsys.readouterr().out
    assert told.count("it knows") == 2 and "do not use" not in told


def test_a_conditional_put_has_one_winner(store: ObjectStore) -> None:
    outcomes: list[str] = []
    barrier = threading.Barrier(8)

    def race(number: int) -> None:
        barrier.wait()
        try:
            store.put("one", str(number).encode(), if_absent=True)
            outcomes.append("won")
        except ObjectExistsError:
            outcomes.append("lost")

    threads = [threading.Thread(target=race, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["lost"] * 7 + ["won"]


def test_a_writing_is_replaced_once(store: ObjectStore) -> None:
    first = store.put("lock", b"1")
    assert store.get_tagged("lock") == (b"1", first)
    second = store.replace("lock", b"2", first)
    with pytest.raises(ObjectExistsError):
        store.replace("lock", b"3", first)
    assert store.get_tagged("lock") == (b"2", second)
    store.delete("lock")
    with pytest.raises(StoreError):
        store.replace("lock", b"4", second)
    assert store.folders() == []


def test_a_life_of_checkpoints(store: ObjectStore) -> None:
    state = {"w": torch.arange(600_000) * 0.5, "bias": torch.ones(3, dtype=torch.bfloat16)}
    with Checkpointer(store) as checkpoints:
        first = checkpoints.save(state, step=1, metrics={"loss": 3.0})
        assert first.sent_bytes == 600_000 * 4 + 3 * 2
        for step in range(2, 6):
            state["w"][step * 1000 : step * 1000 + 10] = -1.0
            saved = checkpoints.save(state, step=step, metrics={"loss": 3.0 - step})
            assert saved.sent_bytes == 256 * 1024
        with pytest.raises(CheckpointExistsError, match="step 5 is already saved"):
            checkpoints.save(state, step=5)
        pin(store, 2)
        assert pinned(store) == {2}
        plan = plan_gc(store, Retention(newest=2))
        assert plan.keep == {5: "one of the newest 2", 4: "one of the newest 2", 2: "pinned"}
        dry = collect(store, plan, dry_run=True, grace_s=0, new_id=lambda: "dry")
        assert dry.dropped_steps == (1, 3)
        assert [listed.step for listed in checkpoints.list()] == [1, 2, 3, 4, 5]
        done = collect(store, plan, grace_s=0, new_id=lambda: "real")
        assert (dry.deleted_objects, dry.deleted_bytes, dry.moved_bytes) == (
            done.deleted_objects,
            done.deleted_bytes,
            done.moved_bytes,
        )
        assert done.moved_bytes > 0
        assert [listed.step for listed in checkpoints.list()] == [2, 4, 5]
        assert done.stored_bytes <= 1.1 * done.referenced_bytes
        assert all(verify(store, step).whole for step in (2, 4, 5))
        # a save builds on a parent that the collection has moved
        state["w"][0] = 7.0
        assert checkpoints.save(state, step=6).sent_bytes == 256 * 1024
        found = checkpoints.load()
        assert torch.equal(found.state["w"], state["w"])
        unpin(store, 2)
        assert plan_gc(store, Retention(newest=3)).drop == (2,)
        pack = sorted(found.manifest.packs())[0]
        store.put(pack, b"other bytes")
        with pytest.raises(CheckpointDamagedError, match=pack):
            checkpoints.load()
        assert any(pack in error for error in verify(store, 6).errors)


def test_a_damaged_manifest_stops_the_collection(store: ObjectStore) -> None:
    with Checkpointer(store) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save({"w": torch.arange(1000) + step}, step=step)
    key = "manifests/000000000002.json"
    store.put(key, store.get(key)[:-5])
    plan = plan_gc(store, Retention(newest=1))
    assert list(plan.damaged) == [2]
    with pytest.raises(CheckpointError, match="drop-damaged"):
        collect(store, plan, grace_s=0, new_id=lambda: "x")
    done = collect(store, plan, grace_s=0, drop_damaged=True, new_id=lambda: "y")
    assert done.dropped_steps == (1,)
    assert [i.key for i in store.list("manifests")] == ["manifests/000000000003.json"]


def test_uploads_that_nobody_ended_are_ended(store: ObjectStore) -> None:
    """What a tool that copies checkpoints left behind when it was killed: seen first, then gone."""
    if store.local_root is not None:
        assert abort_stray_uploads(store, older_than_s=0) == 0
        return
    import os

    import boto3

    keys = {"aws_access_key_id": os.environ["AWS_ACCESS_KEY_ID"], "region_name": "us-east-1"}
    keys["aws_secret_access_key"] = os.environ["AWS_SECRET_ACCESS_KEY"]
    client = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"], **keys)
    prefix = store.uri.removeprefix("s3://tests/")
    for key in (f"{prefix}/packs/a", f"{prefix}/packs/b", f"{prefix}-beside/packs/c"):
        client.create_multipart_upload(Bucket="tests", Key=key)

    def left(below: str) -> list[str]:
        found = client.list_multipart_uploads(Bucket="tests", Prefix=below)
        return [upload["Key"] for upload in found.get("Uploads", [])]

    if "moto" not in store.uri:  # it says 2010 of every upload
        assert abort_stray_uploads(store, older_than_s=3600) == 0
    assert abort_stray_uploads(store, older_than_s=0, dry_run=True) == 2
    assert len(left(f"{prefix}/")) == 2
    assert abort_stray_uploads(store, older_than_s=0) == 2
    assert left(f"{prefix}/") == []
    assert left(f"{prefix}-beside/") == [f"{prefix}-beside/packs/c"]
    assert list(store.list()) == []
