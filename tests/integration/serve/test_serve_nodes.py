"""A deployment on nodes that are taken away under load, with notice and without.

Each node is a raylet of its own with an address of its own. A notice is Ray's own drain; after it,
and for a cut without one, every process of the node is killed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
import requests
from support import wait_for

from rayburst.checkpoint.store import ObjectStore
from rayburst.fleet import processes
from rayburst.serve.deploy import deploy
from rayburst.serve.endpoint import DEADLINE
from rayburst.serve.keys import KeyStore
from rayburst.serve.model_pb2 import PredictRequest
from rayburst.serve.model_pb2_grpc import ModelStub

from .conftest import BIN, Head, Trained, haproxy_env, run_cli, started, started_head
from .test_serve_model import Load

NAME = "nodes"
REPLICAS = 2


class Nodes:
    """The nodes beside the head; each has room for one replica."""

    def __init__(self, head: Head, folder: Path) -> None:
        self.head, self._folder = head, folder
        self._made = 0
        self.folders: dict[str, Path] = {}  # by address

    def add(self) -> str:
        """Starts one and returns its address."""
        self._made += 1
        address = f"127.0.83.{10 + self._made}"
        folder = self._folder / address
        folder.mkdir()
        env = {**self.head.node_env, processes.OWNER_VARIABLE: str(folder)}
        command = [
            str(BIN / "ray"), "start", f"--address={self.head.env['RAY_ADDRESS']}",
            f"--node-ip-address={address}", "--num-cpus=0", "--resources", '{"spot": 1}',
            "--min-worker-port=0", "--max-worker-port=0", "--object-store-memory=80000000",
            f"--dashboard-agent-listen-port={processes.free_ports(1)[0]}", "--disable-usage-stats",
        ]  # fmt: skip
        started(command, env, folder / "node.log")
        self.folders[address] = folder
        return address

    def notify(self, address: str) -> None:
        """A notice, as an interrupted node gets it."""
        run_cli(
            self.head, "ray", "drain-node", "--address", self.head.env["RAY_ADDRESS"],
            "--node-id", self.node_id(address), "--reason", "DRAIN_NODE_REASON_PREEMPTION",
            "--reason-message", "spot notice", "--deadline-remaining-seconds", "90",
        )  # fmt: skip

    def kill(self, address: str) -> None:
        """Power off."""
        found = processes.owned(self.folders.pop(address))
        assert found, "the node had no process"
        assert not processes.end(found, grace_s=0)

    def node_id(self, address: str) -> str:
        listed = run_cli(
            self.head, "ray", "list", "nodes", "--format", "json", "--filter", f"node_ip={address}",
            "--filter", "state=ALIVE",
        )  # fmt: skip
        (node,) = json.loads(listed[listed.index("[") : listed.rindex("]") + 1])
        return str(node["node_id"])

    def close(self) -> None:
        for folder in self.folders.values():
            processes.end(processes.owned(folder), grace_s=0)

    def serving(self, *, without: str = "") -> list[str] | None:
        """Where the replicas run; None unless all do, and none in any state is on `without`."""
        details = self.head.details()["applications"][NAME]["deployments"].values()
        found = [replica for deployment in details for replica in deployment["replicas"]]
        on = [replica["node_ip"] for replica in found if replica["state"] == "RUNNING"]
        is_left = all(replica.get("node_ip") != without for replica in found)
        return on if len(on) == REPLICAS and is_left else None


@pytest.fixture
def nodes(tmp_path_factory: pytest.TempPathFactory, trained: Trained) -> Iterator[Nodes]:
    """A head that carries no replica, and three nodes: one is spare."""
    with ExitStack() as stack:
        folder = tmp_path_factory.mktemp("nodes")
        env = haproxy_env(own=38_000)
        head = stack.enter_context(started_head(folder, trained.store_uri, env))
        made = Nodes(head, folder)
        stack.callback(made.close)
        for _ in range(REPLICAS + 1):
            made.add()
        yield made


def put(head: Head, grpc_port: int, **options: Any) -> str:
    """Deploys the model where every address can ask for it, as replicas on other nodes need it."""
    options = {
        "replicas": {"least": REPLICAS, "cpus": 0, "resources": {"spot": 1}},
        "slo_ms": 20_000,
        **options,
    }
    app = {
        "name": NAME,
        "route_prefix": f"/{NAME}",
        "import_path": "served_models:scaler",
        "args": {"options": json.dumps(options)},
    }
    http = {"host": "0.0.0.0", "port": head.serve_port}
    return deploy(
        head.dashboard_url, head.token, app=app, http=http, grpc_port=grpc_port, timeout_s=150
    ).url


def interrupt(nodes: Nodes, *, has_notice: bool) -> None:
    """Takes the node of a replica away; returns once its replacement runs and a spare is back."""
    victim = wait_for(nodes.serving, what="all replicas run", timeout_s=120)[0]
    if has_notice:
        nodes.notify(victim)
    else:
        nodes.kill(victim)
    moved = lambda: nodes.serving(without=victim)  # noqa: E731
    wait_for(moved, what=f"what ran on {victim} runs elsewhere", timeout_s=120)
    if has_notice:
        nodes.kill(victim)
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


def check_interruptions(
    nodes: Nodes, trained: Trained, notices: int, cuts: int, asked: int
) -> None:
    store = KeyStore(ObjectStore.open(f"{trained.store_uri}/serve/keys"))
    _, secret = store.create("ads", models=("Scaler",), now_s=0)
    (grpc_port,) = processes.free_ports(1)
    url = put(nodes.head, grpc_port)
    assert requests.post(f"{url}/predict", data=b"[1,2,3]", timeout=60).status_code == 401
    check_grpc(grpc_port, secret)
    key = {"authorization": f"Bearer {secret}"}
    clients = 4
    with Load(url, clients, **key) as kept, Load(url, 2, is_fresh=True, **key) as fresh:
        for _ in range(notices):
            interrupt(nodes, has_notice=True)
            assert kept.errors() + fresh.errors() == [], "a notice cost requests"
        for n in range(cuts):
            interrupt(nodes, has_notice=False)
            # in flight on the dead node: at most one a client
            assert len(kept.errors() + fresh.errors()) <= (n + 1) * (clients + 2)
        missing = asked - kept.asked() - fresh.asked()
        if missing > 0:
            kept.more(missing, timeout_s=600)


@pytest.mark.timeout(280)
def test_a_notice_costs_no_request_and_a_cut_only_those_in_flight(
    nodes: Nodes, trained: Trained
) -> None:
    """And off loopback a request needs its key."""
    check_interruptions(nodes, trained, notices=1, cuts=1, asked=500)


@pytest.mark.soak
@pytest.mark.timeout(3000)
def test_twenty_thousand_requests_over_ten_interruptions(nodes: Nodes, trained: Trained) -> None:
    check_interruptions(nodes, trained, notices=6, cuts=4, asked=20_000)
