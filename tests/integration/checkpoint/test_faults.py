"""A network and a store that misbehave: no loss, no hang, and what is refused says why."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from faulty import FaultyProxy

from rayburst.checkpoint.checkpointer import Checkpointer, Options
from rayburst.checkpoint.gc import collect, plan_gc
from rayburst.checkpoint.retention import Retention
from rayburst.checkpoint.store import ObjectStore, StoreOptions
from rayburst.errors import CheckpointDamagedError, CheckpointExistsError, StoreError

from .conftest import READER, Server, environment

PATIENT = StoreOptions(  # a stall ends soon, and a busy machine is tried again for long
    connect_timeout_s=5,
    request_timeout_s=6,
    read_timeout_s=3,
    retries=60,
    retry_s=100,
    backoff_first_s=0.02,
    backoff_most_s=0.2,
)


def state(step: int) -> dict[str, object]:
    return {"w": torch.arange(3_000_000) * 0.5 + step, "n": {"step": step}}


@pytest.fixture
def proxy(seaweed: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    for name, value in seaweed.env.items():
        monkeypatch.setenv(name, value)
    made = FaultyProxy(seaweed.endpoint)
    monkeypatch.setenv("AWS_ENDPOINT_URL", made.endpoint)
    yield made
    made.close()


@pytest.fixture
def store(proxy: FaultyProxy, seaweed: Server) -> ObjectStore:
    return ObjectStore.open(f"{seaweed.fresh()}/run", PATIENT)


@pytest.mark.parametrize("fault", ["503", "reset", "cut", "stall", "slow", "flip-down"])
def test_a_load_comes_through(proxy: FaultyProxy, store: ObjectStore, fault: str) -> None:
    with Checkpointer(store) as checkpoints:
        checkpoints.save(state(1), step=1)
        # a manifest that arrives damaged is refused, so bits flip in packs only
        proxy.plan = lambda method, path, number: (
            fault if method == "GET" and "packs" in path and proxy.fired[fault] < 2 else None
        )
        found = checkpoints.load()
    assert torch.equal(found.state["w"], state(1)["w"])
    assert proxy.fired[fault] == 2


@pytest.mark.parametrize("fault", ["503", "503-after", "reset", "stall", "flip-up"])
def test_a_save_comes_through(proxy: FaultyProxy, store: ObjectStore, fault: str) -> None:
    proxy.plan = lambda method, path, number: (
        fault if method == "PUT" and "packs" in path and proxy.fired[fault] < 2 else None
    )
    with Checkpointer(store) as checkpoints:
        checkpoints.save(state(1), step=1)
        assert proxy.fired[fault] == 2
        assert torch.equal(checkpoints.load().state["w"], state(1)["w"])


@pytest.mark.parametrize("algorithm", ["CRC64NVME", "SHA256"])
def test_the_store_refuses_what_is_damaged_on_its_way_by_either_checksum(
    proxy: FaultyProxy, seaweed: Server, monkeypatch: pytest.MonkeyPatch, algorithm: str
) -> None:
    monkeypatch.setenv("AWS_CHECKSUM_ALGORITHM", algorithm)
    store = ObjectStore.open(f"{seaweed.fresh()}/run", PATIENT)
    proxy.plan = lambda method, path, number: (
        "flip-up" if method == "PUT" and proxy.fired["flip-up"] < 2 else None
    )
    data = bytes(range(256)) * 4096
    store.put("once", data)
    assert proxy.fired["flip-up"] == 2
    assert store.get("once") == data


@pytest.mark.parametrize("fault", ["503", "503-after", "reset", "cut"])
def test_a_doubtful_commit_is_settled(proxy: FaultyProxy, store: ObjectStore, fault: str) -> None:
    """The reply to the commit is lost: the save finds out that it won, or wins at the next try."""
    proxy.plan = lambda method, path, number: (
        fault if method == "PUT" and "manifests" in path and proxy.fired[fault] < 1 else None
    )
    with Checkpointer(store) as checkpoints:
        checkpoints.save(state(1), step=1)
        assert proxy.fired[fault] == 1
        assert checkpoints.load().step == 1
        with pytest.raises(CheckpointExistsError):
            checkpoints.save(state(1), step=1)


def test_a_storm_of_503_passes(proxy: FaultyProxy, store: ObjectStore) -> None:
    proxy.plan = lambda method, path, number: "503" if number % 3 else None
    with Checkpointer(store) as checkpoints:
        for step in (1, 2):
            checkpoints.save(state(step), step=step)
        assert checkpoints.load().step == 2
    assert proxy.fired["503"] > 10


@pytest.mark.parametrize("fault", ["429 1", "503 1"])
def test_a_store_that_throttles_is_left_alone_for_as_long_as_it_asks(
    proxy: FaultyProxy, store: ObjectStore, fault: str
) -> None:
    """For one second from the first pack's upload on it takes no request whatever."""
    opens: list[float] = []

    def plan(method: str, path: str, number: int) -> str | None:
        if not opens and method == "PUT" and "packs" in path:
            opens.append(time.monotonic() + 1.0)
        return fault if opens and time.monotonic() < opens[0] else None

    proxy.plan = plan
    with Checkpointer(store) as checkpoints:
        checkpoints.save(state(1), step=1)
        assert torch.equal(checkpoints.load().state["w"], state(1)["w"])
    asked = [at for at, method, _, told in proxy.log if told and method == "HEAD"]
    refused = {path for _, method, path, told in proxy.log if told and method == "PUT"}
    assert proxy.fired[fault] >= 2
    assert asked
    assert refused
    for path in refused:
        # refused once, and not sent again before the time that the store asked for
        first, again = [at for at, method, p, _ in proxy.log if (method, p) == ("PUT", path)]
        assert again >= min(asked) + 1.0
        assert again > first


def test_a_list_that_breaks_between_its_pages_goes_on_behind_the_last(
    proxy: FaultyProxy, store: ObjectStore
) -> None:
    with ThreadPoolExecutor(8) as pool:
        for _ in pool.map(lambda n: store.put(f"many/{n:05d}", b"x"), range(1050)):
            pass
    proxy.plan = lambda method, path, number: (
        "cut" if "continuation-token" in path and not proxy.fired["cut"] else None
    )
    keys = [info.key for info in store.list("many")]
    assert proxy.fired["cut"] == 1
    assert sorted(keys) == [f"many/{n:05d}" for n in range(1050)]


def test_bytes_that_are_always_wrong_are_refused(proxy: FaultyProxy, store: ObjectStore) -> None:
    with Checkpointer(store) as checkpoints:
        checkpoints.save(state(1), step=1)
        proxy.plan = lambda method, path, number: (
            "flip-down" if method == "GET" and "packs" in path else None
        )
        with pytest.raises(CheckpointDamagedError, match=r"packs/.*digest differs"):
            checkpoints.load()


def test_a_dead_network_ends_in_an_error_not_a_hang(proxy: FaultyProxy, seaweed: Server) -> None:
    options = StoreOptions(
        connect_timeout_s=1, request_timeout_s=0.5, read_timeout_s=0.5, retries=1, retry_s=5
    )
    store = ObjectStore.open(seaweed.fresh(), options)
    proxy.plan = lambda method, path, number: "stall"
    with pytest.raises(StoreError, match=r"s3://tests/[0-9]+/latest\.json"):
        store.get("latest.json")
    assert proxy.fired["stall"] >= 1


def test_after_a_failed_save_the_next_one_works(proxy: FaultyProxy, seaweed: Server) -> None:
    options = StoreOptions(retries=0, retry_s=60, request_timeout_s=60, read_timeout_s=60)
    store = ObjectStore.open(f"{seaweed.fresh()}/run", options)
    with Checkpointer(store) as checkpoints:
        checkpoints.save(state(1), step=1)
        proxy.plan = lambda method, path, number: "503" if "packs" in path else None
        with pytest.raises(StoreError, match="packs/000000000002"):
            checkpoints.save(state(2), step=2)
        assert checkpoints.latest() == 1
        proxy.plan = lambda method, path, number: None
        checkpoints.save(state(2), step=2)
        assert checkpoints.load().state["n"] == {"step": 2}


def test_a_clock_that_is_an_hour_off_harms_nothing(s3_uri: str) -> None:
    """The saver's clock only labels; leases and collections go by the store's own."""
    store = ObjectStore.open(f"{s3_uri}/run")
    for step, shift in ((1, 3600), (2, -3600)):
        with Checkpointer(store, Options(clock=lambda shift=shift: time.time() + shift)) as c:
            c.save(state(step), step=step)
    done = collect(store, plan_gc(store, Retention(newest=1)), new_id=lambda: "x")
    assert done.dropped_steps == (1,)
    assert done.deleted_objects == 0  # all is younger than the grace period
    assert done.spared_bytes > 0
    with Checkpointer(store) as checkpoints:
        assert checkpoints.load().step == 2


def test_a_store_that_refuses_our_clock_says_so(proxy: FaultyProxy, store: ObjectStore) -> None:
    with Checkpointer(store) as checkpoints:
        checkpoints.save(state(1), step=1)
        proxy.plan = lambda method, path, number: "skew" if method == "PUT" else None
        with pytest.raises(StoreError, match=r"clock and the store's differ .* \(NTP\)"):
            checkpoints.save(state(2), step=2)
        proxy.plan = lambda method, path, number: "skew"
        with pytest.raises(StoreError, match="A clock that is off is refused like this too"):
            store.exists("latest.json")
        proxy.plan = lambda method, path, number: None
        assert checkpoints.load().step == 1
    assert proxy.fired["skew"] >= 1


def test_read_only_credentials_load_and_do_not_save(
    s3_uri: str, seaweed: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Checkpointer(f"{s3_uri}/run") as checkpoints:
        checkpoints.save(state(1), step=1)
    for name, value in environment(seaweed.endpoint, *READER).items():
        monkeypatch.setenv(name, value)
    with Checkpointer(f"{s3_uri}/run") as checkpoints:
        assert checkpoints.load().step == 1
        with pytest.raises(StoreError, match="refused these credentials") as caught:
            checkpoints.save(state(2), step=2)
        assert READER[0] not in str(caught.value)
        assert READER[1] not in str(caught.value)
        assert checkpoints.latest() == 1
        plan = plan_gc(checkpoints.store, Retention(newest=1))
        said = collect(checkpoints.store, plan, dry_run=True, new_id=lambda: "x")
        assert (said.dropped_steps, said.deleted_objects) == ((), 0)
        with pytest.raises(StoreError, match="refused these credentials"):
            collect(checkpoints.store, plan, new_id=lambda: "y")


def test_a_missing_bucket_says_so(seaweed: Server, s3_uri: str) -> None:
    with (
        Checkpointer("s3://no-such-bucket/run") as checkpoints,
        pytest.raises(StoreError, match=r"no-such-bucket.*(does not exist|NoSuchBucket)"),
    ):
        checkpoints.save(state(1), step=1)


FULL_DISK = """
import resource, signal, sys, torch
from rayburst.checkpoint.checkpointer import Checkpointer
from rayburst.errors import StoreError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with Checkpointer(sys.argv[1]) as checkpoints:
    checkpoints.save({"w": torch.ones(10)}, step=1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, -1))
    try:
        checkpoints.save({"w": torch.arange(3_000_000.0)}, step=2)
    except StoreError as error:
        assert "packs/000000000002" in str(error), error
        assert "File too large" in str(error), error
    else:
        raise SystemExit("a disk without room took 12 MB")
    resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
    assert checkpoints.load().step == 1
    checkpoints.save({"w": torch.arange(3_000_000.0)}, step=2)
    assert checkpoints.load().step == 2
"""


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path / "store")],
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    left = [p for p in (tmp_path / "store").rglob("*") if "#" in p.name]
    assert left == []


MEMORY = """
import sys, torch
from pathlib import Path
from rayburst.checkpoint.checkpointer import Checkpointer

def peak(reset=False):
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(x for x in lines if x.startswith("VmHWM")).split()[1]) * 1024

size = 200_000_000
state = {f"p{i}": torch.full((size // 40,), float(i)) for i in range(10)}
with Checkpointer(sys.argv[1]) as checkpoints:
    checkpoints.save({"w": torch.ones(10)}, step=0)  # what is loaded once is no state
    for step in (1, 2):
        for tensor in state.values():
            tensor += 1
        before = peak(reset=True) if step == 1 else before
        checkpoints.save(state, step=step)
    print((peak() - before) / size)
"""


def test_a_save_holds_one_copy_of_the_state(s3_uri: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, f"{s3_uri}/run"],
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    assert 0.9 < float(done.stdout) <= 1.25
