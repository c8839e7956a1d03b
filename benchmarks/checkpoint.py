"""Checkpoints side by side: rayburst, its peers and the limits, on one S3 server in one run.

    make bench-checkpoint                       everything; needs a quiet machine and 6 GiB of disk
    python benchmarks/checkpoint.py --quick     64 MB only, one lap

Starts its own SeaweedFS in a temporary folder, runs real ranks over gloo, prints a table and
writes benchmarks/out/checkpoint.json with every cell and the worst ratio of each kind.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from rayburst.dev.objectstore import PORTS, S3Server
from rayburst.fleet import processes

HERE = Path(__file__).parent
MB = 1_000_000
STATES = [(64 * MB, 1), (64 * MB, 10_000), (1000 * MB, 1), (1000 * MB, 10_000)]
QUICK = [(64 * MB, 1), (64 * MB, 10_000)]
PACKAGES = ["torch", "ray", "obstore", "xxhash", "boto3", "s3fs", "s3torchconnector"]
TARGETS = {
    "stall_over_memcpy": ("at most", 1.3),
    "save_over_raw_put": ("at least", 0.85),
    "load_over_raw_get": ("at least", 0.85),
    "save_vs_best_peer": ("at least", 1.0),
    "load_vs_best_peer": ("at least", 1.0),
    "incremental_bytes_over_changed_bytes": ("at most", 1.1),
    "peak_extra_memory_over_state": ("at most", 1.25),
    "step_slowdown": ("at most", 1.05),
}
Cell = dict[str, Any]


def run_ranks(world: int, job: dict[str, Any], env: dict[str, str], folder: Path) -> list[Cell]:
    """One run of checkpoint_rank.py on `world` processes."""
    order, answer = folder / "job.json", folder / "cells.json"
    order.write_text(json.dumps(job))
    answer.unlink(missing_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    base = {**os.environ, **env, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    base |= {"WORLD_SIZE": str(world), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / "checkpoint_rank.py"), str(order), str(answer)]
    ranks = [subprocess.Popen(command, env={**base, "RANK": str(r)}) for r in range(world)]
    try:
        codes = [rank.wait(timeout=3000) for rank in ranks]
    finally:
        for rank in ranks:
            if rank.poll() is None:
                rank.kill()
                rank.wait()
    if any(codes):
        raise SystemExit(f"a rank failed: {codes}; its output is above")
    found: list[Cell] = json.loads(answer.read_text())
    shared = {"size_bytes": job["size_bytes"], "tensors": job["tensors"], "world": world}
    return [{**shared, **cell} for cell in found]


def ray_report(job: dict[str, Any], env: dict[str, str], folder: Path) -> list[Cell]:
    """Ray Train's report of a directory with torch.save in it, in a process of its own."""
    order, answer = folder / "job.json", folder / "cells.json"
    order.write_text(json.dumps(job))
    answer.unlink(missing_ok=True)
    command = [sys.executable, str(HERE / "checkpoint_ray.py"), str(order), str(answer)]
    subprocess.run(command, env={**os.environ, **env}, check=True, timeout=3000)
    found: list[Cell] = json.loads(answer.read_text())
    shared = {"size_bytes": job["size_bytes"], "tensors": job["tensors"], "world": 2}
    return [{**shared, **cell} for cell in found]


def measure(args: argparse.Namespace, env: dict[str, str], folder: Path) -> list[Cell]:
    """All cells."""
    cells: list[Cell] = []
    states = QUICK if args.quick else STATES
    for number, (size, tensors) in enumerate(states):
        repeats = 3 if size <= 64 * MB else 2
        job = {
            "mode": "save",
            "size_bytes": size,
            "tensors": tensors,
            "seed": args.seed,
            "uri": f"s3://bench/{number}",
            "repeats": repeats,
            "laps": args.laps,
            "saved_repeats": repeats,
        }
        say(f"{size // MB} MB in {tensors} tensors, 2 ranks")
        cells += run_ranks(2, job, env, folder)
        say("  the same in one rank, loading")
        cells += run_ranks(1, {**job, "mode": "load"}, env, folder)
        say("  step time during the upload")
        cells += run_ranks(
            1, {**job, "mode": "slowdown", "uri": f"s3://bench/s{number}"}, env, folder
        )
        if not args.without_ray:
            say("  Ray Train's report")
            cells += ray_report(job, env, folder)
    return cells


def ratios(cells: list[Cell]) -> dict[str, float]:
    """Of each kind the worst over the states."""
    found: dict[str, list[float]] = {name: [] for name in TARGETS}
    for key in sorted({(c["size_bytes"], c["tensors"]) for c in cells}):
        mine = [c for c in cells if (c["size_bytes"], c["tensors"]) == key]
        for name, value in state_ratios(mine).items():
            found[name].append(value)
    worst = {}
    for name, values in found.items():
        if values:
            worst[name] = max(values) if TARGETS[name][0] == "at most" else min(values)
    return worst


def state_ratios(cells: list[Cell]) -> dict[str, float]:
    """Ratios of one state; medians of the repeats."""

    def median(operation: str, peer: str | None = None, field: str = "seconds") -> float:
        values = [
            c[field]
            for c in cells
            if c["operation"] == operation
            and (peer is None or c.get("peer") == peer)
            and field in c
        ]
        return statistics.median(values) if values else float("nan")

    def best(operation: str) -> float:
        names = {c["peer"] for c in cells if c["operation"] == operation} - {"rayburst"}
        return min((median(operation, name) for name in names), default=float("nan"))

    first = [c for c in cells if c.get("peer") == "rayburst" and c["operation"] == "first save"]
    partial = [c for c in cells if "sent_bytes" in c]
    steps = [c for c in cells if c["operation"] == "training step"]
    loads = ("load, same world", "load, other world")
    saves = ("first save", "save, 10% changed")
    return {
        "stall_over_memcpy": max(
            median(operation, "rayburst", "stall_s") / median("memcpy")
            for operation in ("whole save again", "save, 10% changed")
        ),
        "save_over_raw_put": best("raw put") / median("whole save again", "rayburst"),
        "load_over_raw_get": min(best("raw get") / median(o, "rayburst") for o in loads),
        "save_vs_best_peer": min(best(o) / median(o, "rayburst") for o in saves),
        "load_vs_best_peer": min(best(o) / median(o, "rayburst") for o in loads),
        "incremental_bytes_over_changed_bytes": max(
            c["sent_bytes"] / c["changed_bytes"] for c in partial
        ),
        "peak_extra_memory_over_state": max(c["extra_bytes"] / c["size_bytes"] for c in first),
        "step_slowdown": max(c["during_upload_s"] / c["alone_s"] for c in steps),
    }


def show(cells: list[Cell], worst: dict[str, float]) -> None:
    console = Console()
    table = Table(title="median seconds (MB/s)")
    for column in ("state", "world", "operation", "who", "seconds", "MB/s", "stall s"):
        table.add_column(column, justify="left" if column in ("operation", "who") else "right")
    groups: dict[tuple[Any, ...], list[Cell]] = {}
    for c in cells:
        if "seconds" in c:
            key = (c["size_bytes"], c["tensors"], c["world"], c["operation"], c.get("peer", ""))
            groups.setdefault(key, []).append(c)
    for (size, tensors, world, operation, peer), group in groups.items():
        seconds = statistics.median(c["seconds"] for c in group)
        stalls = [c["stall_s"] for c in group if "stall_s" in c]
        stall = f"{statistics.median(stalls):.3f}" if stalls else ""
        speed = f"{size / seconds / MB:.0f}"
        state = f"{size // MB} MB / {tensors}"
        table.add_row(state, str(world), operation, peer, f"{seconds:.3f}", speed, stall)
    console.print(table)
    verdicts = Table(title="worst cell of each ratio")
    for column in ("ratio", "value", "target", ""):
        verdicts.add_column(column)
    for name, value in worst.items():
        kind, target = TARGETS[name]
        met = value <= target if kind == "at most" else value >= target
        verdicts.add_row(name, f"{value:.3f}", f"{kind} {target}", "met" if met else "missed")
    console.print(verdicts)


def say(words: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {words}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="64 MB only")
    parser.add_argument("--laps", type=int, default=1, help="how often everything is measured")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--without-ray", action="store_true", help="leave Ray Train's report out")
    parser.add_argument("--out", type=Path, default=HERE / "out" / "checkpoint.json")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="rayburst-bench-"))
    server = S3Server(folder / "s3", address="127.0.0.1", ports=processes.free_ports(PORTS))
    server.write_config()
    owner = {**os.environ, processes.OWNER_VARIABLE: str(folder)}
    log = folder / "weed.log"
    processes.spawn(server.command(), env=owner, log=log)
    try:
        server.wait_until_ready(log.read_text, timeout_s=60)
        server.create_bucket("bench")
        cells = measure(args, server.environment(), folder)
    finally:
        processes.end(processes.owned(folder), grace_s=0.0)
        shutil.rmtree(folder, ignore_errors=True)
    worst = ratios(cells)
    show(cells, worst)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    report = {
        "command": " ".join(["python", *sys.argv]),
        "seed": args.seed,
        "machine": {"cpus": os.cpu_count(), "system": platform.platform()},
        "versions": {name: version(name) for name in PACKAGES},
        "targets": {name: f"{kind} {value}" for name, (kind, value) in TARGETS.items()},
        "ratios": worst,
        "cells": cells,
    }
    args.out.write_text(json.dumps(report, indent=1))
    print(f"written: {args.out}")


def version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    main()
