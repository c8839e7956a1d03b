"""The object store client on a local folder: the whole contract without a network."""

from __future__ import annotations

import pickle
import threading
from pathlib import Path

import pytest

from rayburst.checkpoint.store import ObjectStore, StoreOptions
from rayburst.errors import ObjectExistsError, ObjectNotFoundError, StoreError


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return ObjectStore.open(tmp_path / "store")


def test_put_get_range_size_delete(store: ObjectStore) -> None:
    store.put("a/b", b"hello")
    assert store.get("a/b") == b"hello"
    assert store.get_range("a/b", 1, 3) == b"ell"
    assert store.get_range("a/b", 3, 100) == b"lo"
    assert store.get_range("a/b", 0, 0) == b""
    assert store.get_range("a/b", 5, 4) == b""
    assert store.size("a/b") == 5
    assert store.exists("a/b")
    store.delete("a/b")
    store.delete("a/b")
    assert not store.exists("a/b")


def test_put_takes_a_memoryview_and_replaces(store: ObjectStore) -> None:
    store.put("k", memoryview(bytearray(b"xhellox"))[1:6])
    assert bytes(store.get_buffer("k")) == b"hello"
    store.put("k", b"2")
    assert store.get("k") == b"2"


def test_missing_object_is_named(store: ObjectStore) -> None:
    with pytest.raises(ObjectNotFoundError, match="no/such: no such object"):
        store.get("no/such")
    with pytest.raises(ObjectNotFoundError):
        store.get_range("no/such", 0, 5)


def test_conditional_put_has_one_winner(store: ObjectStore) -> None:
    won: list[int] = []
    lost: list[int] = []
    barrier = threading.Barrier(16)

    def race(number: int) -> None:
        barrier.wait()
        try:
            store.put("manifest", str(number).encode(), if_absent=True)
            won.append(number)
        except ObjectExistsError:
            lost.append(number)

    threads = [threading.Thread(target=race, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert len(lost) == 15
    assert store.get("manifest") == str(won[0]).encode()
    assert [info.key for info in store.list()] == ["manifest"]


def test_list_is_by_folder_and_relative(store: ObjectStore) -> None:
    for key in ("a/b/c", "a/bc", "z"):
        store.put(key, b"12")
    assert sorted(i.key for i in store.list()) == ["a/b/c", "a/bc", "z"]
    assert [i.key for i in store.list("a/b")] == ["a/b/c"]
    child = store.child("a")
    assert sorted(i.key for i in child.list()) == ["b/c", "bc"]
    assert {i.size_bytes for i in child.list()} == {2}
    assert list(child.list("nothing")) == []
    assert child.uri == f"{store.uri}/a"


@pytest.mark.parametrize("key", ["", "/a", "a/../b"])
def test_a_bad_key_is_refused(store: ObjectStore, key: str) -> None:
    with pytest.raises(StoreError, match="is no key"):
        store.put(key, b"")


@pytest.mark.parametrize("uri", ["ftp://x/y", "s3://", "hdfs://a/b"])
def test_an_unknown_uri_lists_the_known_ones(uri: str) -> None:
    with pytest.raises(StoreError, match=r"Allowed: s3://bucket/prefix"):
        ObjectStore.open(uri)


def test_credentials_in_a_uri_are_refused_and_not_repeated() -> None:
    with pytest.raises(StoreError) as caught:
        ObjectStore.open("s3://AKIA:hunter2@bucket/x")
    assert "hunter2" not in str(caught.value)


def test_file_uri_and_path_are_the_same_store(tmp_path: Path) -> None:
    ObjectStore.open(f"file://{tmp_path}").put("k", b"1")
    assert ObjectStore.open(tmp_path).get("k") == b"1"


def test_pickles_as_its_uri(store: ObjectStore) -> None:
    store.child("x").put("k", b"1")
    assert pickle.loads(pickle.dumps(store.child("x"))).get("k") == b"1"


def test_no_secret_in_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAEXAMPLEKEY")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2hunter2")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    store = ObjectStore.open("s3://bucket/x", StoreOptions(retries=0, connect_timeout_s=1))
    with pytest.raises(StoreError) as caught:
        store.get("key")
    text = repr(caught.value) + str(caught.value.__cause__)
    assert "s3://bucket/x/key" in text
    assert "AKIAEXAMPLEKEY" not in text
    assert "hunter2" not in text


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match="request_timeout_s"):
        StoreOptions(request_timeout_s=0)
    with pytest.raises(ValueError, match="retries"):
        StoreOptions(retries=-1)
