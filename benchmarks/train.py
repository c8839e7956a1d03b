"""Step throughput of a rayburst run, fast and exact, beside plain DDP under torchrun; and layouts.

    make bench-train                            # about fifteen minutes on two idle cores
    python benchmarks/train.py --only modes --add --rounds 10       # a piece, added to the others
    python benchmarks/train.py --only layouts

The three ways take turns in the same two processes, a few steps each, in an order that rotates; a
ratio is taken within a round, so what else the machine does changes it little. Writes
benchmarks/out/train.json: `ratios` has the medians `fast_vs_ddp`, `exact_vs_ddp` and
`data_wait_share` (of fast mode's step time), and what benchmarks/train_layouts.py found: `layouts`
(each against torch's own form), `bf16_activation_memory` and `bubble`. `runs` has every round of
the modes, train_layouts.json those of the layouts.
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
LAYOUTS = Path(__file__).with_name("train_layouts.py")
OUT = Path(__file__).parent / "out" / "train.json"


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """{"rounds": [{way: steps a second}], "wait_share"} of two processes under torchrun."""
    out = folder / "found.json"
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone",
        f"--nproc-per-node={args.world}", str(RANK),
        args.preset, str(args.rounds), str(args.steps), str(args.batch), str(out),
    ]  # fmt: skip
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if not out.exists():
        raise SystemExit(f"the ranks failed:\n{done.stderr[-3000:]}")
    return {"machine": args.machine, **json.loads(out.read_text())}


def ratios(runs: list[dict[str, Any]]) -> dict[str, float]:
    """Medians over the rounds of all runs."""
    rounds = [one for run in runs for one in run["rounds"]]
    found = {
        f"{mode}_vs_ddp": statistics.median(one[mode] / one["ddp"] for one in rounds)
        for mode in ("fast", "exact")
    }
    return {**found, "data_wait_share": statistics.median(run["wait_share"] for run in runs)}


def show(runs: list[dict[str, Any]], medians: dict[str, float]) -> None:
    table = Table("mode", "steps/s, median", "lowest", "highest", "against DDP")
    for mode in MODES:
        rates = [one[mode] for run in runs for one in run["rounds"]]
        ratio = medians.get(f"{mode}_vs_ddp")
        table.add_row(
            mode,
            *(f"{value:.2f}" for value in (statistics.median(rates), min(rates), max(rates))),
            "" if ratio is None else f"{ratio:.3f}",
        )
    Console().print(table)
    print(f"waiting for data: {medians['data_wait_share']:.2%} of fast mode's step time")


def layout_ratios(path: Path) -> dict[str, Any]:
    """What the layouts' benchmark has measured so far."""
    if not path.exists():
        return {}
    found = json.loads(path.read_text())
    ratios: dict[str, Any] = {}
    if rows := found.get("throughput"):
        ratios["layouts"] = {row["layout"]: row["ratio"] for row in rows}
    if memory := found.get("memory"):
        ratios["bf16_activation_memory"] = memory["bf16_activation_memory"]
    if bubble := found.get("bubble"):
        ratios["bubble"] = {name: bubble[name] for name in ("measured", "theory")}
    return ratios


def write(runs: list[dict[str, Any]], args: argparse.Namespace) -> None:
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
        "ratios": {
            **(ratios(runs) if runs else {}),
            **layout_ratios(OUT.with_name("train_layouts.json")),
        },
        "runs": runs,
    }
    OUT.write_text(json.dumps(report, indent=1))


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--only", choices=("modes", "layouts"))
    p.add_argument("--add", action="store_true", help="keep the rounds that are there")
    p.add_argument("--rounds", type=int, default=30)
    p.add_argument("--world", type=int, default=2)
    p.add_argument("--steps", type=int, default=10, help="of each way in each round")
    p.add_argument("--batch", type=int, default=32)
    p.add_argument("--preset", default="micro")
    p.add_argument("--machine", default="quiet", help="what else ran: kept with the run")
    args = p.parse_args()
    OUT.parent.mkdir(exist_ok=True)
    keeps = OUT.exists() and (args.add or args.only == "layouts")
    runs = json.loads(OUT.read_text())["runs"] if keeps else []
    if args.only != "layouts":
        with tempfile.TemporaryDirectory() as folder:
            runs.append(measure(args, Path(folder)))
        show(runs, ratios(runs))
    if args.only != "modes":
        subprocess.run([sys.executable, str(LAYOUTS), "--machine", args.machine], check=True)
    write(runs, args)


if __name__ == "__main__":
    main()
