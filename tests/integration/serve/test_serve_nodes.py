"""A deployment on nodes that are taken away under load, with notice and without.

Each node is a raylet of its own with an address of its own. A notice is Ray's own drain; after it,
and for a cut without one, every process of the node is killed. A replica alone is killed too.
"""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families
from support import wait_for

from rayburst.checkpoint.store import ObjectStore
from rayburst.fleet import processes
from rayburst.serve.controller import CALLBACK
from rayburst.serve.deploy import deploy
from rayburst.serve.endpoint import DEADLINE
from rayburst.serve.keys import KeyStore
from rayburst.serve.model_pb2 import PredictRequest
from rayburst.serve.model_pb2_grpc import ModelStub

from .conftest import ADDRESS, BIN, Head, Trained, haproxy_env, run_cli, started, started_head
from .test_serve_model import Load

_log = logging.getLogger(__name__)
NAME = "nodes"
REPLICAS = 2


class Nodes:
    """The nodes beside the head; each has room for one replica."""

    def __init__(self, head: Head, folder: Path) -> None:
        self.head, self._folder = head, folder
        self._made = 0
        self.url = ""  # of the model, once there is one
        self.folders: dict[str, Path] = {}  # by address

    def add(self, resource: str = "spot", count: int = 1, market: str = "spot") -> str:
        """Starts one with so much of a resource and returns its address."""
        self._made += 1
        address = f"127.0.83.{10 + self._made}"
        folder = self._folder / address
        folder.mkdir()
        env = {**self.head.node_env, processes.OWNER_VARIABLE: str(folder)}
        command = [
            str(BIN / "ray"), "start", f"--address={self.head.env['RAY_ADDRESS']}",
            f"--node-ip-address={address}", "--num-cpus=0",
            "--resources", json.dumps({resource: count}), f"--labels=ray.io/market-type={market}",
            "--min-worker-port=0", "--max-worker-port=0", "--object-store-memory=80000000",
            f"--dashboard-agent-listen-port={processes.free_ports(1)[0]}", "--disable-usage-stats",
        ]  # fmt: skip
        started(command, env, folder / "node.log")
        self.folders[address] = folder
        return address

    def notify(self, address: str) -> None:
        """A notice, as an interrupted node gets it; a replica runs there."""
        (node_id,) = {r["node_id"] for r in self.replicas() if r.get("node_ip") == address}
        run_cli(
            self.head, "ray", "drain-node", "--address", self.head.env["RAY_ADDRESS"],
            "--node-id", node_id, "--reason", "DRAIN_NODE_REASON_PREEMPTION",
            "--reason-message", "spot notice", "--deadline-remaining-seconds", "90",
        )  # fmt: skip

    def kill(self, address: str) -> None:
        """Power off."""
        found = processes.owned(self.folders.pop(address))
        assert found, "the node had no process"
        assert not processes.end(found, grace_s=0)

    def close(self) -> None:
        for folder in self.folders.values():
            processes.end(processes.owned(folder), grace_s=0)

    def replicas(self) -> list[dict[str, Any]]:
        """In whatever state they are."""
        details = self.head.details()["applications"][NAME]["deployments"].values()
        return [replica for deployment in details for replica in deployment["replicas"]]

    def serving(self, *, without: Collection[Any] = ()) -> list[dict[str, Any]] | None:
        """The replicas; None until just as many run as shall, none on an address or with a process
        id of `without`."""
        found = self.replicas()
        running = [replica for replica in found if replica["state"] == "RUNNING"]
        is_left = all(
            replica.get("node_ip") not in without and replica.get("pid") not in without
            for replica in found
        )
        return found if is_left and len(running) == len(found) == REPLICAS else None

    def is_asked_again(self) -> bool:
        """Whether the head's HAProxy has the policy for the model."""
        (config,) = self._folder.glob("*/haproxy.cfg")
        return "empty-response" in config.read_text()

    def retries(self) -> float:
        """The metric of requests that were asked again, as Ray's agent on the head exports it."""
        listed = (self.head.ray_folder / "prom_metrics_service_discovery.json").read_text()
        exporters = {target for group in json.loads(listed) for target in group["targets"]}
        on_head = (exporter for exporter in exporters if exporter.startswith(f"{ADDRESS}:"))
        pages = [requests.get(f"http://{each}/metrics", timeout=30).text for each in on_head]
        return sum(
            sample.value
            for page in pages
            for family in text_string_to_metric_families(page)
            for sample in family.samples
            if sample.name.startswith("ray_rayburst_serve_retries")
            and sample.labels["application"] == NAME
        )


@pytest.fixture
def nodes(tmp_path_factory: pytest.TempPathFactory, trained: Trained) -> Iterator[Nodes]:
    """A head that carries no replica, and three nodes: one is spare."""
    with ExitStack() as stack:
        folder = tmp_path_factory.mktemp("nodes")
        env = {
            **haproxy_env(own=38_000),
            "RAY_SERVE_CONTROLLER_CALLBACK_IMPORT_PATH": CALLBACK,
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        }
        head = stack.enter_context(started_head(folder, trained.store_uri, env))
        made = Nodes(head, folder)
        stack.callback(made.close)
        for _ in range(REPLICAS + 1):  # at once they are too much for two cores: Ray gives up
            made.add()
        yield made


def put(nodes: Nodes, grpc_port: int, seconds: float, **options: Any) -> str:
    """Deploys the model where every address can ask for it, as replicas on other nodes need it.

    A batch takes `seconds`. Returns when no older replica is left.
    """
    head = nodes.head
    before = [replica.get("pid") for replica in nodes.replicas()] if nodes.url else []
    options = {
        "replicas": {"least": REPLICAS, "cpus": 0, "resources": {"spot": 1}},
        "slo_ms": 20_000,
        **options,
    }
    app = {
        "name": NAME,
        "route_prefix": f"/{NAME}",
        "import_path": "served_models:scaler",
        "args": {"options": json.dumps(options), "seconds": str(seconds)},
    }
    http = {"host": "0.0.0.0", "port": head.serve_port}
    nodes.url = deploy(
        head.dashboard_url, head.token, app=app, http=http, grpc_port=grpc_port, timeout_s=150
    ).url
    wait_for(lambda: nodes.serving(without=before), what="all replicas are new", timeout_s=120)
    is_known = lambda: options["idempotent"] == nodes.is_asked_again() or None  # noqa: E731
    wait_for(is_known, what="HAProxy knows whether the model is idempotent")
    return nodes.url


def interrupt(nodes: Nodes, kind: str) -> None:
    """Takes a replica, or its node, away; returns once a replacement runs and a spare is back."""
    victim = wait_for(nodes.serving, what="all replicas run", timeout_s=120)[0]
    address, pid = victim["node_ip"], victim["pid"]
    if kind == "notice":
        nodes.notify(address)
    elif kind == "cut":
        nodes.kill(address)
    else:
        os.kill(pid, signal.SIGKILL)
    left = [pid] if kind == "kill" else [pid, address]
    moved = lambda: nodes.serving(without=left)  # noqa: E731
    wait_for(moved, what=f"what ran on {address} runs elsewhere", timeout_s=120)
    if kind == "notice":
        nodes.kill(address)
    if kind != "kill":
        nodes.add()


def check_grpc(port: int, secret: str) -> None:
    """The same model by the same queue, with gRPC's words for what went wrong."""
    app = ("application", NAME)
    key = ("authorization", f"Bearer {secret}")
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        ask = ModelStub(channel).Predict
        request = PredictRequest(body=b"[1,2,3]")
        answer = ask(request, metadata=[app, key], timeout=60, wait_for_ready=True)
        assert json.loads(answer.body)["out"] == [2.0, 4.0, 6.0]
        for bad, metadata, code in [
            (request, [app], grpc.StatusCode.UNAUTHENTICATED),
            (PredictRequest(body=b"[1,2]"), [app, key], grpc.StatusCode.INVALID_ARGUMENT),
            (request, [app, key, (DEADLINE.decode(), "x")], grpc.StatusCode.INVALID_ARGUMENT),
        ]:
            with pytest.raises(grpc.RpcError) as refused:
                ask(bad, metadata=metadata, timeout=60)
            assert refused.value.code() == code, refused.value.details()


@dataclass
class Clients:
    """Some that keep their connections and some that make one for each request."""

    kept: Load
    fresh: Load

    @property
    def count(self) -> int:
        return len(self.kept.clients) + len(self.fresh.clients)

    def asked(self) -> int:
        return self.kept.asked() + self.fresh.asked()

    def errors(self) -> list[str]:
        return self.kept.errors() + self.fresh.errors()

    def more(self, count: int, *, timeout_s: float = 90) -> None:
        wanted = self.asked() + count
        enough = lambda: True if self.asked() >= wanted else None  # noqa: E731
        wait_for(enough, what=f"{count} more requests", timeout_s=timeout_s)


@contextmanager
def clients(
    url: str, secret: str, kept: int, fresh: int, rate: float = math.inf
) -> Iterator[Clients]:
    """They ask, all of them together at most `rate` times a second."""
    key = {"authorization": f"Bearer {secret}"}
    every_s = (kept + fresh) / rate
    with (
        Load(url, kept, every_s=every_s, **key) as keeping,
        Load(url, fresh, is_fresh=True, every_s=every_s, **key) as opening,
    ):
        yield Clients(keeping, opening)


def secret_key(trained: Trained) -> str:
    store = KeyStore(ObjectStore.open(f"{trained.store_uri}/serve/keys"))
    _, secret = store.create("ads", models=("Scaler",), now_s=0)
    return secret


@pytest.mark.timeout(280)
def test_a_notice_costs_nothing_a_cut_what_was_in_flight_and_nothing_where_that_may_be_asked_again(
    nodes: Nodes, trained: Trained
) -> None:
    """And off loopback a request needs its key. Batches are so slow that each replica has one."""
    secret = secret_key(trained)
    (grpc_port,) = processes.free_ports(1)
    url = put(nodes, grpc_port, seconds=0.2, idempotent=False)
    assert requests.post(f"{url}/predict", data=b"[1,2,3]", timeout=60).status_code == 401
    check_grpc(grpc_port, secret)
    with clients(url, secret, kept=4, fresh=2) as asking:
        asking.more(50)
        interrupt(nodes, "notice")
        assert asking.errors() == [], "a notice cost requests"
        interrupt(nodes, "cut")
        assert 1 <= len(asking.errors()) <= asking.count
    assert nodes.retries() == 0
    put(nodes, grpc_port, seconds=0.2, idempotent=True)
    with clients(url, secret, kept=4, fresh=2) as asking:
        asking.more(100)
        interrupt(nodes, "cut")
        asking.more(50)
        assert asking.errors() == []
        counted = wait_for(lambda: nodes.retries() or None, what="retries are counted")
        assert 1 <= counted <= asking.count


@pytest.mark.soak
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("is_idempotent", [False, True])
def test_twenty_thousand_requests_over_twelve_interruptions(
    nodes: Nodes, trained: Trained, is_idempotent: bool
) -> None:
    """At 70% of what one replica can, the survivor of two."""
    secret, took_down = secret_key(trained), 0
    (grpc_port,) = processes.free_ports(1)
    url = put(nodes, grpc_port, seconds=0.02, max_batch=4, idempotent=is_idempotent)
    with clients(url, secret, kept=12, fresh=4) as asking:
        asking.more(200)
        began_s, began = time.monotonic(), asking.asked()
        asking.more(2000)
        capacity = (asking.asked() - began) / (time.monotonic() - began_s) / REPLICAS
        assert asking.errors() == []
    with clients(url, secret, kept=12, fresh=4, rate=0.7 * capacity) as asking:
        for kind in ("notice", "cut", "kill") * 4:
            before = len(asking.errors())
            interrupt(nodes, kind)
            lost = len(asking.errors()) - before
            took_down += lost
            _log.info("%s: %d asked, %d lost", kind, asking.asked(), lost)
            assert lost <= (0 if is_idempotent or kind == "notice" else asking.count)
        asking.more(max(1, 20_000 - asking.asked()), timeout_s=900)
        assert len(asking.errors()) == took_down
    retries = (
        wait_for(lambda: nodes.retries() or None, what="retries are counted")
        if is_idempotent
        else 0
    )
    _log.info("one replica: %.0f/s; lost %d; again %.0f", capacity, took_down, retries)
    assert is_idempotent or took_down > 0, "no interruption met a request"
