"""Step throughput of a rayburst run, fast and exact, beside plain DDP under torchrun.

    make bench-train
    .venv/bin/python benchmarks/train.py --rounds 3 --steps 60

Every round runs the three one after the other, in an order that turns; a round's ratio is taken
within it. Writes benchmarks/out/train.json: `ratios` has the medians `fast_vs_ddp`, `exact_vs_ddp`
and `data_wait_share` (of fast mode's step time); `runs` has every run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
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

MODES = ("ddp", "fast", "exact")
RANK = Path(__file__).with_name("train_rank.py")
OUT = Path(__file__).parent / "out" / "train.json"


def measure(mode: str, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    out = folder / f"{mode}.json"
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone",
        f"--nproc-per-node={args.world}", str(RANK),
        mode, args.preset, str(args.steps), str(args.batch), str(out),
    ]  # fmt: skip
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{mode} failed:\n{done.stderr[-3000:]}")
    return {"mode": mode, **json.loads(out.read_text())}


def ratios(runs: list[dict[str, Any]]) -> dict[str, float]:
    rounds: dict[int, dict[str, dict[str, Any]]] = {}
    for run in runs:
        rounds.setdefault(run["round"], {})[run["mode"]] = run
    found = {
        f"{mode}_vs_ddp": statistics.median(
            r[mode]["steps_per_s"] / r["ddp"]["steps_per_s"] for r in rounds.values()
        )
        for mode in ("fast", "exact")
    }
    waits = [run["wait_share"] for run in runs if run["mode"] == "fast"]
    return {**found, "data_wait_share": statistics.median(waits)}


def show(runs: list[dict[str, Any]], medians: dict[str, float]) -> None:
    table = Table("mode", "steps/s, every run", "median", "against DDP")
    for mode in MODES:
        rates = [run["steps_per_s"] for run in runs if run["mode"] == mode]
        ratio = medians.get(f"{mode}_vs_ddp")
        table.add_row(
            mode,
            " ".join(f"{rate:.1f}" for rate in rates),
            f"{statistics.median(rates):.1f}",
            "" if ratio is None else f"{ratio:.3f}",
        )
    Console().print(table)
    print(f"waiting for data: {medians['data_wait_share']:.2%} of fast mode's step time")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--world", type=int, default=2)
    p.add_argument("--steps", type=int, default=150)
    p.add_argument("--batch", type=int, default=32)
    p.add_argument("--preset", default="micro")
    args = p.parse_args()
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(args.rounds):
            turn = number % len(MODES)
            for mode in (*MODES[turn:], *MODES[:turn]):
                runs.append({"round": number, **measure(mode, args, Path(folder))})
    medians = ratios(runs)
    show(runs, medians)
    OUT.parent.mkdir(exist_ok=True)
    report = {
        "command": f"python benchmarks/train.py {' '.join(sys.argv[1:])}".strip(),
        "settings": vars(args),
        "seed": 0,
        "date": time.strftime("%Y-%m-%d"),
        "machine": {"cpus": os.cpu_count(), "system": platform.platform()},
        "versions": {name: metadata.version(name) for name in ("rayburst", "torch", "ray")},
        "commit": subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=RANK.parent
        ).stdout.strip(),
        "ratios": medians,
        "runs": runs,
    }
    OUT.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
