"""Step throughput of a rayburst run, fast and exact, beside plain DDP under torchrun; and layouts.

    make bench-train                                  # about fifteen minutes on two idle cores
    python benchmarks/train.py --only modes --add --rounds 3        # a piece; more rounds are added
    python benchmarks/train.py --only layouts

Every round runs the three one after the other, in an order that turns; a round's ratio is taken
within it. Writes benchmarks/out/train.json: `ratios` has the medians `fast_vs_ddp`, `exact_vs_ddp`
and `data_wait_share` (of fast mode's step time), and what benchmarks/train_layouts.py found:
`layouts` (each against torch's own form), `bf16_activation_memory` and `bubble`. `runs` has every
run of the modes, train_layouts.json those of the layouts.
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
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--world", type=int, default=2)
    p.add_argument("--steps", type=int, default=150)
    p.add_argument("--batch", type=int, default=32)
    p.add_argument("--preset", default="micro")
    args = p.parse_args()
    OUT.parent.mkdir(exist_ok=True)
    keeps = OUT.exists() and (args.add or args.only == "layouts")
    runs = json.loads(OUT.read_text())["runs"] if keeps else []
    if args.only != "layouts":
        first = 1 + max((run["round"] for run in runs), default=-1)
        for number in range(first, first + args.rounds):
            turn = number % len(MODES)
            with tempfile.TemporaryDirectory() as folder:
                runs += [
                    {"round": number, **measure(mode, args, Path(folder))}
                    for mode in (*MODES[turn:], *MODES[:turn])
                ]
            write(runs, args)
        show(runs, ratios(runs))
    if args.only != "modes":
        subprocess.run([sys.executable, str(LAYOUTS)], check=True)
    write(runs, args)


if __name__ == "__main__":
    main()
