"""A Ray head of the tests' own, with token authentication, and a store with one trained run."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
from trained_runs import save_model

from rayburst.fleet import processes
from rayburst.train.gpt import GPT

REPO = Path(__file__).resolve().parents[3]
APPS = Path(__file__).parent / "apps"  # models that the tests serve
BIN = Path(sys.executable).parent
ADDRESS = "127.0.83.1"  # Ray takes 127.0.0.1 for a wish for the machine's own address


@dataclass(frozen=True)
class Head:
    """A running head. `env` is for Ray's own commands, `node_env` for nodes that join it."""

    folder: Path
    ray_folder: Path
    dashboard_url: str
    token: str
    serve_port: int
    metrics_url: str
    env: dict[str, str]
    node_env: dict[str, str]

    def details(self) -> dict[str, Any]:
        """Serve's own view of its applications."""
        answer = requests.get(
            f"{self.dashboard_url}/api/serve/applications/",
            headers={"Authorization": f"Bearer {self.token}"},
            timeout=30,
        )
        answer.raise_for_status()
        return dict(answer.json())


@dataclass(frozen=True)
class Trained:
    """A store on disk with one run: the addresses of its checkpoints, the newest one's model."""

    store_uri: str
    older: str
    newer: str
    model: GPT


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """One run of two checkpoints."""
    root = f"file://{tmp_path_factory.mktemp('store')}"
    older, _ = save_model(f"{root}/runs/demo", step=10)
    newer, model = save_model(f"{root}/runs/demo", step=20)
    return Trained(store_uri=root, older=older, newer=newer, model=model)


@pytest.fixture(scope="session")
def head(tmp_path_factory: pytest.TempPathFactory, trained: Trained) -> Iterator[Head]:
    """Room for two replicas, no application yet."""
    with started_head(tmp_path_factory.mktemp("head"), trained.store_uri, {}) as made:
        yield made


@pytest.fixture(scope="session")
def fast_head(tmp_path_factory: pytest.TempPathFactory, trained: Trained) -> Iterator[Head]:
    """A head whose Serve runs HAProxy, so that replicas have servers of their own."""
    own = 30_000 + 80 * (os.getpid() % 90)  # tests that run beside these have other ports
    env = haproxy_env(own)
    with started_head(tmp_path_factory.mktemp("fast"), trained.store_uri, env) as made:
        yield made


def haproxy_env(own: int) -> dict[str, str]:
    """What makes Serve run HAProxy, with 80 ports for replicas from `own` on."""
    metrics, stats, fallback, fallback_grpc = processes.free_ports(4)
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(fallback_grpc),
        "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": str(own + 40),
        "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": str(own + 79),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(own),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(own + 39),
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "3",
    }


@contextlib.contextmanager
def started_head(folder: Path, store_uri: str, more: dict[str, str]) -> Iterator[Head]:
    """A head with `more` in its environment; ended with everything it started."""
    tmp = tempfile.mkdtemp(prefix="rb-", dir="/tmp")  # sockets need a short path
    gcs, dashboard, agent, client, serve, metrics = processes.free_ports(6)
    token = folder / "token"
    token.write_text("a-token-of-the-tests-0123456789abcdef")
    auth = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "RAYBURST_"))}
    path = os.pathsep.join(filter(None, (str(REPO), str(APPS), os.environ.get("PYTHONPATH", ""))))
    env = {
        **clean,
        **auth,
        **more,
        processes.OWNER_VARIABLE: str(folder),
        "PYTHONPATH": path,
        "RAYBURST_STORE": store_uri,
        "RAY_USAGE_STATS_ENABLED": "0",
        "SPT_NOENV": "1",
    }
    command = [
        str(BIN / "ray"), "start", "--head", f"--node-ip-address={ADDRESS}", f"--port={gcs}",
        "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}",
        f"--metrics-export-port={metrics}",
        f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}",
        "--num-cpus=2", "--num-gpus=0", "--min-worker-port=0", "--max-worker-port=0",
        "--object-store-memory=100000000", f"--temp-dir={tmp}", "--disable-usage-stats",
    ]  # fmt: skip
    log = folder / "head.log"
    try:
        started(command, env, log)
        yield Head(
            folder=folder,
            ray_folder=Path(tmp),
            dashboard_url=f"http://127.0.0.1:{dashboard}",
            token=token.read_text(),
            serve_port=serve,
            metrics_url=f"http://{ADDRESS}:{metrics}/metrics",
            env={
                **clean,
                **auth,
                "PYTHONPATH": path,
                "RAY_DASHBOARD_ADDRESS": f"http://127.0.0.1:{dashboard}",
                "RAY_ADDRESS": f"{ADDRESS}:{gcs}",
            },
            node_env=env,
        )
    finally:
        left = processes.end(processes.owned(folder), grace_s=5)
        shutil.rmtree(tmp, ignore_errors=True)
        assert not left


def started(command: list[str], env: dict[str, str], log: Path) -> None:
    """Runs `ray start`; a machine under load may need a second try within Ray's own patience."""
    owner = Path(env[processes.OWNER_VARIABLE])
    for _ in range(3):
        if processes.spawn(command, env=env, log=log).wait(timeout=240) == 0:
            return
        assert "timed out during startup" in log.read_text(), log.read_text()
        processes.end(processes.owned(owner), grace_s=0)
    raise AssertionError(log.read_text())


def run_cli(head: Head, *words: str) -> str:
    """Runs one of Ray's own commands as a user of the fleet would; returns what it printed."""
    done = subprocess.run(
        [str(BIN / words[0]), *words[1:]],
        env=head.env, cwd=REPO, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr
