"""How long training stands still when a node goes or comes: stock Ray Train beside rayburst.

    make bench-recovery                                # 5 seeds of each; about 55 minutes
    python benchmarks/recovery.py --seeds 2            # fewer
    python benchmarks/recovery.py --add --within 480   # a piece: go on where one stopped

A real Ray cluster of one-CPU nodes on this machine, a new one for each run, trains a small model,
0.25 s a step. `spread` is rayburst with a model in pieces (FSDP2): one that is lost comes from a
peer's memory or the store. `notice`: of three nodes one is drained with 10 s to go, then loses
power; `cut`: one loses power; `growth`: a third node joins two; `link`: no packet reaches a worker
any more, while its process and its node live (stock waits for torch's half hour then, so it is left
out). The seed says which rank is hit, rank 0 included, and after which step.

    gap_s       the longest time from the event on in which no rank finished a step
    steps_lost  finished steps that were done again

A gap in growth is counted until the larger group has trained for a while. Ray's own settings, its
health checks among them, are as installed. Stock has an elastic trainer and takes a checkpoint when
Ray tells of the preemption; both save every 20 steps. Prints a table, writes
benchmarks/out/recovery.json with every run.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from ray.cluster_utils import Cluster

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "benchmarks" / "out" / "recovery.json"
RUNS = OUT.with_suffix(".jsonl")
SYSTEMS, EVENTS = ("rayburst", "stock", "spread"), ("notice", "cut", "growth", "link")
WAITS = ("stock", "link")
NOTICE_S = 10.0
AFTER_STEPS = 20
WAIT_S = 240.0
Line = dict[str, Any]


def lines_of(log: Path) -> list[Line]:
    """What ranks have written so far."""
    text = log.read_text() if log.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def wait(found: Callable[[], Any], what: str, job: subprocess.Popen[bytes]) -> Any:
    """What `found` returns, once it is something."""
    end_s = time.monotonic() + WAIT_S
    while time.monotonic() < end_s:
        value = found()
        if value:
            return value
        if job.poll() is not None:
            raise RuntimeError(f"the job ended before {what}")
        time.sleep(0.05)
    raise RuntimeError(f"no {what} within {WAIT_S:g} s")


class Nodes:
    """The cluster; nodes can be given notice and cut off."""

    def __init__(self) -> None:
        self._cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
        )
        self._nodes: dict[str, Any] = {}
        self.address = str(self._cluster.address)

    def ensure(self, count: int) -> None:
        """So many nodes of one CPU."""
        while len(self._nodes) < count:
            node = self._cluster.add_node(num_cpus=1)
            self._nodes[node.node_id] = node

    def drain(self, node: str) -> None:
        """What a cloud's notice becomes in Ray."""
        from ray._raylet import GcsClient
        from ray.core.generated import autoscaler_pb2

        reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        deadline_ms = int((time.time() + NOTICE_S) * 1000)
        GcsClient(address=self.address).drain_node(node, reason, "benchmark", deadline_ms)

    def cut(self, node: str) -> None:
        """A power cut: every process of the node is killed."""
        self._cluster.remove_node(self._nodes.pop(node), allow_graceful=False)

    def close(self) -> None:
        """End everything."""
        self._cluster.shutdown()


def measured(lines: list[Line], event_s: float, step_s: float) -> tuple[float, int]:
    """(gap_s, steps_lost) of a run whose event was at `event_s`; `step_s`: a usual step."""
    times = sorted(line["t"] for line in lines)
    pairs = [(a, b) for a, b in itertools.pairwise(times) if b > event_s]
    gap_s = max(b - a for a, b in pairs) - step_s
    lost = 0
    for pid in {line["pid"] for line in lines}:
        mine = sorted((line for line in lines if line["pid"] == pid), key=lambda line: line["t"])
        before = [line["step"] for line in lines if line["t"] < mine[0]["t"] - step_s]
        if before and mine[0]["t"] > event_s:
            lost = max(lost, max(before) - mine[0]["step"] + 1)
        lost = max(lost, len(mine) - len({line["step"] for line in mine}))
    return max(0.0, gap_s), lost


def once(system: str, event: str, seed: int) -> dict[str, Any]:
    """One run: train, let the event happen, train on, end."""
    nodes = Nodes()
    folder = Path(tempfile.mkdtemp(prefix="recovery-"))
    try:
        return {
            "system": system,
            "event": event,
            "seed": seed,
            **_run(nodes, folder, system, event, seed),
        }
    finally:
        nodes.close()
        shutil.rmtree(folder, ignore_errors=True)


def _run(nodes: Nodes, folder: Path, system: str, event: str, seed: int) -> dict[str, Any]:
    dice = random.Random(seed)
    rank, at = (seed + (event in ("cut", "link"))) % 3, dice.randrange(25, 35)
    nodes.ensure(2 if event == "growth" else 3)
    config = {
        "name": f"{system}-{event}-{seed}",
        "storage": str(folder),
        "log": str(folder / "log"),
        "steps": 100_000,
        "tests": str(ROOT / "tests"),
    }
    job = subprocess.Popen(
        [sys.executable, str(ROOT / "benchmarks" / "recovery_job.py"), system, json.dumps(config)],
        env={**os.environ, "RAY_ADDRESS": nodes.address, "RAY_AUTH_MODE": "disabled"},
        stdout=(folder / "out").open("w"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    log = folder / "log"
    try:
        wait(lambda: any(line["step"] >= at for line in lines_of(log)), f"step {at}", job)
        before = lines_of(log)
        times = sorted(line["t"] for line in before if line["rank"] == 0)
        step_s = median(b - a for a, b in itertools.pairwise(times))
        event_s = time.time()
        if event == "growth":
            nodes.ensure(3)
        elif event == "link":
            (folder / f"silent-{rank}").touch()
        else:
            victim = next(line["node"] for line in reversed(before) if line["rank"] == rank)
            if event == "notice":
                nodes.drain(victim)
                time.sleep(NOTICE_S)
            nodes.cut(victim)
        changed_s, world = time.time(), 3 if event == "growth" else 2

        known = {line["pid"] for line in before}

        def goes_on() -> bool:
            if event == "link":  # the process is replaced on its node before two have trained long
                new = [x["step"] for x in lines_of(log) if x["pid"] not in known]
                return bool(new) and max(new) >= min(new) + AFTER_STEPS
            after = [x for x in lines_of(log) if x["t"] > changed_s and x["world"] == world]
            return bool(after) and after[-1]["step"] >= after[0]["step"] + AFTER_STEPS

        wait(goes_on, f"training to go on with {world} workers", job)
        gap_s, lost = measured(lines_of(log), event_s, step_s)
    finally:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
            job.wait()
    hit = {} if event == "growth" else {"rank": rank}
    return {**hit, "step": at, "step_s": step_s, "gap_s": gap_s, "steps_lost": lost}


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians by system and event, and ratios where both have runs."""
    found: dict[str, Any] = {}
    for system in SYSTEMS:
        for event in EVENTS:
            mine = [r for r in runs if r["system"] == system and r["event"] == event]
            if mine:
                found.setdefault(system, {})[event] = {
                    "gap_s": median(r["gap_s"] for r in mine),
                    "steps_lost": median(r["steps_lost"] for r in mine),
                    "runs": len(mine),
                }
    for event in EVENTS:
        if all(event in found.get(system, {}) for system in SYSTEMS[:2]):
            ours, stock = (found[s][event]["gap_s"] for s in SYSTEMS[:2])
            found[f"ratio_{event}"] = ours / stock
    return found


def runs_so_far() -> list[dict[str, Any]]:
    """Every run that any process has added."""
    text = RUNS.read_text() if RUNS.exists() else ""
    return [json.loads(line) for line in text.splitlines()]


def add(run: dict[str, Any], arguments: list[str]) -> None:
    """Keep a run, and write the result so far."""
    import ray

    OUT.parent.mkdir(parents=True, exist_ok=True)
    with RUNS.open("a") as file:  # one short write: processes may run at the same time
        file.write(json.dumps(run) + "\n")
    runs = runs_so_far()
    commit = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    about = {
        "command": " ".join(["python", "benchmarks/recovery.py", *arguments]),
        "commit": commit.stdout.strip(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {"ray": ray.__version__, "torch": torch.__version__},
        "notice_s": NOTICE_S,
    }
    OUT.write_text(json.dumps({**summary(runs), "about": about, "runs": runs}, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--events", nargs="+", choices=EVENTS, default=list(EVENTS))
    parser.add_argument("--add", action="store_true", help="keep the runs that are there")
    parser.add_argument("--within", type=float, default=1e9, help="seconds; begin no run after")
    parser.add_argument("--machine", default="quiet", help="what else ran: kept with each run")
    chosen = parser.parse_args()
    os.environ["RAY_AUTH_MODE"] = "disabled"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))  # so that the cluster ends too
    if not chosen.add:
        RUNS.unlink(missing_ok=True)
    done = {(r["system"], r["event"], r["seed"]) for r in runs_so_far()}
    each = itertools.product(range(chosen.first, chosen.seeds), chosen.events, chosen.systems)
    todo = [(seed, event, system) for seed, event, system in each if (system, event) != WAITS]
    end_s = time.monotonic() + chosen.within
    for seed, event, system in todo:
        if (system, event, seed) in done or time.monotonic() > end_s:
            continue
        began_s = time.monotonic()
        run = {**once(system, event, seed), "machine": chosen.machine}
        run["wall_s"] = time.monotonic() - began_s
        add(run, sys.argv[1:])
        print(
            f"{system:9} {event:7} seed {seed}: gap {run['gap_s']:6.2f} s, "
            f"{run['steps_lost']} steps lost; took {run['wall_s']:.0f} s",
            flush=True,
        )
    for event in EVENTS:
        if event == "link":
            continue
        ratio = summary(runs_so_far()).get(f"ratio_{event}")
        print(f"ratio {event}: {'not measured' if ratio is None else f'{ratio:.3f}'}")


if __name__ == "__main__":
    main()
