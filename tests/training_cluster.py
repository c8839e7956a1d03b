"""A small real Ray cluster of one-CPU nodes on this machine; tests may drain and kill its nodes."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import warnings
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from support import wait_for

from rayburst.checkpoint.store import ObjectStore
from rayburst.fleet.supervisor import AUTOSCALER_ENVIRONMENT
from rayburst.train import runlog
from rayburst.train.grants import NAMESPACE

OPEN = {"RAY_AUTH_MODE": "disabled"}
_HEALTH = "RAY_health_check_period_ms"
QUICK = {_HEALTH: AUTOSCALER_ENVIRONMENT[_HEALTH]}
"""A dead node is seen as soon as on a fleet's head."""


class _Cluster:
    """The cluster and its worker nodes, by Ray's node id."""

    def __init__(self, dashboard: bool) -> None:
        from ray.cluster_utils import Cluster

        self._cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": dashboard}
        )
        self._nodes: dict[str, Any] = {}
        self._hosts: dict[str, str] = {}
        self._draining: set[str] = set()
        self._odd: set[str] = set()
        self._made = 0

    def address(self) -> str:
        return str(self._cluster.address)

    def add(self, cpus: int = 1, memory_share: float | None = None) -> str:
        labels = {
            "rayburst.io/host": f"host-{self._made}",
            "rayburst.io/market": "spot",
            "rayburst.io/pool": "p",
        }
        self._made += 1
        limit = {} if memory_share is None else {"RAY_memory_usage_threshold": str(memory_share)}
        node = self._cluster.add_node(num_cpus=cpus, labels=labels, env_vars=limit)
        self._nodes[node.node_id] = node
        if cpus != 1 or limit:
            self._odd.add(node.node_id)
        self._hosts[node.node_id] = labels["rayburst.io/host"]
        return str(node.node_id)

    def hosts(self) -> list[str]:
        return [self._hosts[node] for node in self._nodes]

    def ensure(self, count: int) -> None:
        for node_id in (self._draining | self._odd) & self._nodes.keys():
            self.kill(node_id)
        while len(self._nodes) < count:
            self.add()
        while len(self._nodes) > count:
            self.kill(next(iter(self._nodes)))

    def drain(self, node_id: str, notice_s: float) -> float:
        from ray._raylet import GcsClient
        from ray.core.generated import autoscaler_pb2

        deadline_s = time.time() + notice_s
        reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        accepted, why = GcsClient(address=self.address()).drain_node(
            node_id, reason, "spot capacity is taken back", int(deadline_s * 1000)
        )
        assert accepted, why
        self._draining.add(node_id)
        return deadline_s

    def publish(self, key: str, value: bytes) -> None:
        from ray._raylet import GcsClient

        client = GcsClient(address=self.address())
        client.internal_kv_put(key.encode(), value, True, NAMESPACE)

    def published(self, key: str) -> bytes | None:
        from ray._raylet import GcsClient

        client = GcsClient(address=self.address())
        found: bytes | None = client.internal_kv_get(key.encode(), NAMESPACE)
        return found

    def kill(self, node_id: str) -> None:
        node = self._nodes.pop(node_id)
        raylet = node.all_processes["raylet"][0].process
        self._cluster.remove_node(node, allow_graceful=False)
        assert raylet.poll() is not None

    def close(self) -> None:
        self._cluster.shutdown()


def _answer(calls: Connection, env: dict[str, str], dashboard: bool) -> None:
    """Main of the cluster's process; Ray starts nodes in a main thread only."""
    os.environ.update(env)
    warnings.simplefilter("ignore", ResourceWarning)  # Ray does not wait for what it killed
    cluster = _Cluster(dashboard)
    while True:
        name, arguments = calls.recv()
        try:
            answer = getattr(cluster, name)(*arguments)
        except Exception as error:
            answer = RuntimeError(f"{name}{arguments}: {type(error).__name__}: {error}")
        calls.send(answer)
        if name == "close":
            return


class Nodes:
    """The cluster, in a process of its own whose processes have `env` in their environment.

    Ray keeps a process's authentication once it is known, so that a fleet that another test
    reached before from this process would decide how these nodes start. `dashboard`: what Ray asks
    whether a controller lives.
    """

    def __init__(self, env: dict[str, str], *, dashboard: bool = False) -> None:
        context = multiprocessing.get_context("spawn")
        self._calls, theirs = context.Pipe()
        self._process = context.Process(
            target=_answer, args=(theirs, {**env, **OPEN, **QUICK}, dashboard)
        )
        self._process.start()
        theirs.close()
        self.address: str = self._call("address")

    def _call(self, name: str, *arguments: Any) -> Any:
        self._calls.send((name, arguments))
        answer = self._calls.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def add(self, cpus: int = 1, memory_share: float | None = None) -> str:
        """`memory_share`: of the machine's memory; beyond it Ray ends workers of the node."""
        return str(self._call("add", cpus, memory_share))

    def hosts(self) -> list[str]:
        """Names of the machines, in the order in which they were added."""
        return list(self._call("hosts"))

    def ensure(self, count: int) -> None:
        """Exactly `count` worker nodes of one CPU that may be used: none that got notice."""
        self._call("ensure", count)

    def drain(self, node_id: str, notice_s: float) -> float:
        """Give notice as a cloud does, through Ray's drain; returns the deadline (unix s)."""
        return float(self._call("drain", node_id, notice_s))

    def publish(self, key: str, value: bytes) -> None:
        """What a planner tells its jobs, in the head's key-value store."""
        self._call("publish", key, value)

    def published(self, key: str) -> bytes | None:
        """What a job tells its planner there."""
        found: bytes | None = self._call("published", key)
        return found

    def kill(self, node_id: str) -> None:
        """A power cut: every process of the node is gone when this returns."""
        self._call("kill", node_id)

    def close(self) -> None:
        self._call("close")
        self._process.join(60)
        assert self._process.exitcode == 0


class Job:
    """A driver process of its own process group, and the log of its run."""

    def __init__(
        self,
        command: list[str],
        nodes: Nodes,
        out: Path,
        env: dict[str, str],
        cwd: Path | None = None,
    ) -> None:
        self._out = out
        whole = {**os.environ, **env, **OPEN, "PYTHONUNBUFFERED": "1"}
        whole["RAY_ADDRESS"] = nodes.address
        with out.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, *command],
                env=whole,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=cwd,
            )

    @property
    def output(self) -> str:
        return self._out.read_text()

    def wait(self, timeout_s: float = 400) -> int:
        return self.process.wait(timeout_s)

    def result(self) -> dict[str, Any]:
        line = next(x for x in self.output.splitlines() if x.startswith("RESULT "))
        return dict(json.loads(line.removeprefix("RESULT ")))

    def kill(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


class Run:
    """What a run has written: its folder on the store, read while it goes on."""

    def __init__(self, uri: str, job: Job) -> None:
        self.folder = ObjectStore.open(uri)
        self.job = job

    def records(self, kind: str, **fields: Any) -> list[dict[str, Any]]:
        return [
            record
            for record in runlog.read_folder(self.folder)
            if record["kind"] == kind and all(record.get(k) == v for k, v in fields.items())
        ]

    def wait(self, kind: str, *, at_least: int = 1, **fields: Any) -> list[dict[str, Any]]:
        """Until there are `at_least` records of this kind; fails at once when the job ended."""

        def probe() -> list[dict[str, Any]] | None:
            found = self.records(kind, **fields)
            if len(found) >= at_least:
                return found
            assert self.job.process.poll() is None, f"the job ended early:\n{self.job.output}"
            return None

        return wait_for(probe, what=f"{at_least} {kind} {fields}", timeout_s=300)

    def wait_step(self, step: int) -> None:
        def probe() -> bool | None:
            if any(record["step"] >= step for record in self.records("step")):
                return True
            assert self.job.process.poll() is None, f"the job ended early:\n{self.job.output}"
            return None

        wait_for(probe, what=f"step {step}", timeout_s=300)
