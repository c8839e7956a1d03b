"""Checkpoints side by side: rayburst, its peers and the limits, on one S3 server in one run.

    make bench-checkpoint                                  everything: an hour, 20 GiB of disk
    python benchmarks/checkpoint.py --states 64x1          one state: 64 MB in one tensor
    python benchmarks/checkpoint.py --states 64x1 --parts limits,slowdown --into

Starts SeaweedFS servers of its own in a temporary folder, runs real ranks over gloo, prints a table
and writes benchmarks/out/checkpoint.json with every cell and the worst ratio of each kind. With
`--into` the cells replace the same states and parts of an earlier result, so that a long run can be
done in quiet pieces.

Parts: `limits` is rayburst beside a plain copy and the best raw PUT and GET of the same bytes, in
turns; `peers` is everybody's first save, saves with a tenth changed, and loads; `ray` is Ray
Train's report of a folder; `slowdown` is the time of a training step while a save uploads.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from rayburst.dev.objectstore import PORTS, S3Server
from rayburst.fleet import processes

HERE = Path(__file__).parent
MB = 1_000_000
STATES = "64x1,64x10000,1000x1,1000x10000"
PARTS = "limits,peers,ray,slowdown"
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
    # explicit, or Ray keeps a token in the user's home
    env = {**os.environ, **env, "RAY_AUTH_MODE": "disabled"}
    subprocess.run(command, env=env, check=True, timeout=3000)
    found: list[Cell] = json.loads(answer.read_text())
    shared = {"size_bytes": job["size_bytes"], "tensors": job["tensors"], "world": 2}
    return [{**shared, **cell} for cell in found]


def measure(args: argparse.Namespace) -> Iterator[list[Cell]]:
    """The cells of each state and part that was asked for."""
    for size, tensors in wanted_states(args.states):
        job = {"size_bytes": size, "tensors": tensors, "seed": args.seed, "uri": "s3://bench/x"}
        for part in args.parts.split(","):
            say(f"{size // MB} MB in {tensors} tensors: {part}")
            with server() as (env, folder):
                found = PART[part](job, small=size <= 64 * MB, env=env, folder=folder)
            yield [{**cell, "part": part} for cell in found]


def wanted_states(text: str) -> list[tuple[int, int]]:
    """("64x1") -> [(bytes, tensors)]."""
    pairs = [state.split("x") for state in text.split(",")]
    return [(int(size) * MB, int(tensors)) for size, tensors in pairs]


def measure_limits(job: Cell, *, small: bool, env: dict[str, str], folder: Path) -> list[Cell]:
    job = {**job, "mode": "limits", "repeats": 7 if small else 3}
    cells = run_ranks(2, job, env, folder)
    return cells + run_ranks(1, {**job, "mode": "limits of another world"}, env, folder)


def measure_peers(job: Cell, *, small: bool, env: dict[str, str], folder: Path) -> list[Cell]:
    repeats = 3 if small else 2
    cells = run_ranks(2, {**job, "mode": "save", "repeats": repeats}, env, folder)
    saved: dict[str, int] = {}
    for cell in cells:
        saved[cell["peer"]] = saved.get(cell["peer"], 0) + (cell["operation"] == PARTIAL)
    say("  the same in one rank, loading")
    again = {**job, "mode": "load", "repeats": repeats, "saved": saved}
    return cells + run_ranks(1, again, env, folder)


def measure_ray(job: Cell, *, small: bool, env: dict[str, str], folder: Path) -> list[Cell]:
    return ray_report({**job, "repeats": 3 if small else 2}, env, folder)


def measure_slowdown(job: Cell, *, small: bool, env: dict[str, str], folder: Path) -> list[Cell]:
    return run_ranks(1, {**job, "mode": "slowdown", "repeats": 7 if small else 3}, env, folder)


PARTIAL = "save, 10% changed"
PART: dict[str, Any] = {
    "limits": measure_limits,
    "peers": measure_peers,
    "ray": measure_ray,
    "slowdown": measure_slowdown,
}


@contextmanager
def server() -> Iterator[tuple[dict[str, str], Path]]:
    """A fresh S3 server with the bucket `bench`: its clients' environment, and its folder."""
    folder = Path(tempfile.mkdtemp(prefix="rayburst-bench-"))
    ports = processes.free_ports(PORTS)
    store = S3Server(folder / "s3", address="127.0.0.1", ports=ports, volumes=48)
    store.write_config()
    owner = {**os.environ, processes.OWNER_VARIABLE: str(folder)}
    log = folder / "weed.log"
    processes.spawn(store.command(), env=owner, log=log)
    try:
        store.wait_until_ready(log.read_text, timeout_s=60)
        store.create_bucket("bench")
        yield store.environment(), folder
    finally:
        processes.end(processes.owned(folder), grace_s=0.0)
        store.remove_sockets()
        shutil.rmtree(folder, ignore_errors=True)


def ratios(cells: list[Cell]) -> dict[str, float]:
    """Of each kind the worst over the states."""
    found: dict[str, list[float]] = {name: [] for name in TARGETS}
    for mine in by_state(cells).values():
        for name, value in state_ratios(mine).items():
            found[name].append(value)
    worst = {}
    for name, values in found.items():
        if values:
            worst[name] = max(values) if TARGETS[name][0] == "at most" else min(values)
    return worst


def by_state(cells: list[Cell]) -> dict[tuple[int, int], list[Cell]]:
    """Cells by (bytes, tensors)."""
    found: dict[tuple[int, int], list[Cell]] = {}
    for cell in cells:
        found.setdefault((cell["size_bytes"], cell["tensors"]), []).append(cell)
    return found


def state_ratios(cells: list[Cell]) -> dict[str, float]:
    """Ratios of one state; medians of the repeats. What was not measured is left out."""

    def median(part: str, operation: str, peer: str | None, field: str = "seconds") -> float:
        values = [
            c[field]
            for c in cells
            if (c["part"], c["operation"]) == (part, operation)
            and (peer is None or c.get("peer") == peer)
            and field in c
        ]
        return statistics.median(values) if values else float("nan")

    def best(parts: tuple[str, ...], operation: str) -> float:
        found = {(c["part"], c["peer"]) for c in cells if c["operation"] == operation}
        others = [(p, name) for p, name in found if p in parts and name != "rayburst"]
        return min((median(p, operation, name) for p, name in others), default=float("nan"))

    def against(operation: str, rivals: tuple[str, ...], rival: str, part: str) -> float:
        return best(rivals, rival) / median(part, operation, "rayburst")

    gets = {"load, same world": "raw get", "load, other world": "raw get, other world"}
    saves, everybody = ("first save", PARTIAL), ("peers", "ray")
    first = [c for c in cells if c.get("peer") == "rayburst" and c["operation"] == "first save"]
    partial = [c for c in cells if "sent_bytes" in c]
    steps = [c for c in cells if c["operation"] == "training step"]
    stall = median("limits", "whole save again", "rayburst", "stall_s")
    found = {
        "stall_over_memcpy": stall / median("limits", "memcpy", None),
        "save_over_raw_put": against("whole save again", ("limits",), "raw put", "limits"),
        "load_over_raw_get": min(against(o, ("limits",), g, "limits") for o, g in gets.items()),
        "save_vs_best_peer": min(against(o, everybody, o, "peers") for o in saves),
        "load_vs_best_peer": min(against(o, everybody, o, "peers") for o in gets),
        "incremental_bytes_over_changed_bytes": max(
            (c["sent_bytes"] / c["changed_bytes"] for c in partial), default=float("nan")
        ),
        "peak_extra_memory_over_state": max(
            (c["extra_bytes"] / c["size_bytes"] for c in first), default=float("nan")
        ),
        "step_slowdown": max(
            (c["during_upload_s"] / c["alone_s"] for c in steps), default=float("nan")
        ),
    }
    return {name: value for name, value in found.items() if not math.isnan(value)}


def show(cells: list[Cell], worst: dict[str, float]) -> None:
    console = Console()
    table = Table(title="median seconds (MB/s)")
    for column in ("state", "world", "operation", "who", "seconds", "MB/s", "stall s"):
        table.add_column(column, justify="left" if column in ("operation", "who") else "right")
    groups: dict[tuple[Any, ...], list[Cell]] = {}
    for c in cells:
        if "seconds" in c:
            who = f"{c.get('peer', '')} ({c['part']})"
            key = (c["size_bytes"], c["tensors"], c["world"], c["operation"], who)
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
    parser.add_argument("--states", default=STATES, help=f"MB x tensors; without it {STATES}")
    parser.add_argument("--parts", default=PARTS, help=f"some of {PARTS}")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--out", type=Path, default=HERE / "out" / "checkpoint.json")
    parser.add_argument("--into", action="store_true", help="keep other states and parts in OUT")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # or the server would stay
    report: dict[str, Any] = {"runs": [], "cells": []}
    if args.into and args.out.exists():
        report = json.loads(args.out.read_text())
    report["runs"].append({"command": " ".join(["python", *sys.argv]), "commit": commit()})
    for cells in measure(args):
        add(report, cells)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=1))
    show(report["cells"], report["ratios"])
    print(f"written: {args.out}")


def add(report: dict[str, Any], fresh: list[Cell]) -> None:
    """Put new cells in the place of older ones of their state and part."""
    places = {place(cell) for cell in fresh}
    load = os.getloadavg()[1]
    cells = [cell for cell in report["cells"] if place(cell) not in places]
    cells += [{**cell, "load_average": load} for cell in fresh]
    report |= {
        "machine": {"cpus": os.cpu_count(), "system": platform.platform()},
        "versions": {name: version(name) for name in PACKAGES},
        "targets": {name: f"{kind} {value}" for name, (kind, value) in TARGETS.items()},
        "ratios": ratios(cells),
        "ratios_by_state": {
            f"{size // MB} MB in {tensors}": state_ratios(mine)
            for (size, tensors), mine in by_state(cells).items()
        },
        "cells": cells,
    }


def commit() -> str:
    """The commit that is measured; "unknown" outside of a repository."""
    found = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=HERE, capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or "unknown"


def place(cell: Cell) -> tuple[int, int, str]:
    """Which state and part a cell belongs to."""
    return cell["size_bytes"], cell["tensors"], cell["part"]


def version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    main()
