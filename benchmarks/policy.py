"""The planner on recorded spot markets, beside the baselines and the optimum.

    make bench-policy                                  # everything; about half an hour on one core
    python benchmarks/policy.py --thin 10              # a tenth of the jobs
    python benchmarks/policy.py --only gangs           # one part
    python benchmarks/policy.py --counts               # print the counts of fleet/recorded.py

Prints one table for each changeover time, one for several zones and one for gangs, and writes
benchmarks/out/policy.json. Traces: ../shared/traces or --traces; nothing is fitted here, and the
prior of a replayed set leaves that set out. The bootstrap (seed 0) resamples zones and start days.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from rayburst.fleet.hazards import BINS, Hazards, ZoneRecord
from rayburst.fleet.replay.results import Report
from rayburst.fleet.replay.simulate import Settings, simulate
from rayburst.fleet.replay.traces import read_traces

ROOT = Path(__file__).resolve().parents[1]
PAIR = ("rayburst", "uniform-progress")


def removed_interval(report: Report, seed: int = 0, rounds: int = 2000) -> tuple[float, float]:
    """5% and 95% of the share removed (mean of fractions), zones and start days resampled."""
    random = np.random.default_rng(seed)
    zones = list(report.job_starts_s)
    days = {z: (report.job_starts_s[z] // 86400).astype(int) for z in zones}
    every_day = np.unique(np.concatenate(list(days.values())))
    found = []
    for _ in range(rounds):
        weight = np.bincount(random.choice(every_day, len(every_day)), minlength=every_day[-1] + 1)
        cost = {p: [] for p in (*PAIR, "omniscient")}
        for zone in random.choice(zones, len(zones)):
            w = weight[days[zone]]
            for policy, means in cost.items():
                if w.sum():
                    means.append((report.job_costs[zone, policy] * w).sum(axis=1) / w.sum())
        ours, theirs, best = (np.mean(cost[p], axis=0) for p in (*PAIR, "omniscient"))
        found.append(float(np.mean((theirs - ours) / (theirs - best))))
    low, high = np.percentile(found, [5, 95])
    return float(low), float(high)


def worst_zone(report: Report) -> tuple[float, str]:
    """The largest mean cost above Uniform Progress, and where."""
    cost = {(r.zone, r.fraction, r.policy): r.cost_ratio for r in report.rows}
    over = {
        f"{zone} at {fraction:g}": cost[zone, fraction, PAIR[0]] - cost[zone, fraction, PAIR[1]]
        for zone, fraction, policy in cost
        if policy == PAIR[0]
    }
    where = max(over, key=lambda k: over[k])
    return over[where], where


def single_zone(traces: Path, settings: Settings) -> dict[str, object]:
    """All policies on every zone of windows/, each zone by itself."""
    began, worked = time.perf_counter(), time.process_time()
    report = simulate(traces / "windows", settings)
    wall_s, cpu_s = time.perf_counter() - began, time.process_time() - worked
    shares = list(report.removed().values())
    low, high = removed_interval(report)
    over, where = worst_zone(report)
    print(report.table())
    print(
        f"changeover {settings.changeover_s / 3600:g} h: removed {np.mean(shares):.3f} "
        f"(bootstrap 5-95%: {low:.3f} to {high:.3f}); misses {report.misses()}; most above "
        f"uniform-progress {over:+.4f} ({where}); {wall_s:.0f} s, "
        f"{cpu_s:.0f} s of the processor\n",
        flush=True,
    )
    return {
        **report.as_json(),
        "removed_mean": float(np.mean(shares)),
        "removed_5_95": [low, high],
        "most_above_uniform_progress": over,
        "wall_s": wall_s,
        "cpu_s": cpu_s,
    }


def side_by_side(traces: Path, settings: Settings) -> dict[str, object]:
    """Four zones as one market, and the best single zone's optimum."""
    policies = (*PAIR, "omniscient")
    folder = traces / "zones-2023-02"
    many = simulate(folder, replace(settings, policies=policies, many_zones=True))
    single = simulate(folder, replace(settings, policies=("omniscient",)))
    print(many.table())
    best = {f: min(r.cost_ratio for r in single.rows if str(r.fraction) == f) for f in many.mean()}
    for fraction, by in many.mean().items():
        print(
            f"fraction {fraction}: {many.removed()[fraction]:.3f} of the way to omniscient; "
            f"{by['rayburst']:.4f} against {best[fraction]:.4f}, the best single zone's optimum"
        )
    print(flush=True)
    return {**many.as_json(), "best_single_zone_omniscient": best}


def gangs(traces: Path, settings: Settings) -> list[dict[str, object]]:
    """Gangs that shrink and regrow, against all-or-nothing Uniform Progress."""
    wide = replace(settings, policies=PAIR)
    runs = [
        ("gang-2023-08", replace(wide, nodes=16, every_s=6 * 3600.0)),
        ("membership/bamboo-p3.csv", replace(wide, nodes=32, work_s=18000.0, every_s=1800.0)),
        ("membership/segment_hl_15_25.csv", replace(wide, nodes=32, work_s=1800.0, every_s=60.0)),
        ("membership/segment_ll_10_11.csv", replace(wide, nodes=18, work_s=1800.0, every_s=60.0)),
    ]
    found = []
    for name, run in runs:
        for changeover_s in (180.0, 720.0) if "segment" not in name else (60.0, 180.0):
            used = replace(run, changeover_s=changeover_s)
            if "membership" in name:
                used = replace(used, fractions=(0.6, 0.7, 0.8))
            report = simulate(traces / name, used)
            gain = {f: by[PAIR[1]] / by[PAIR[0]] - 1 for f, by in report.mean().items()}
            text = ", ".join(f"{f}: {g:+.1%}" for f, g in gain.items())
            print(
                f"{name}, {used.nodes} nodes, changeover {changeover_s:.0f} s: work per dollar "
                f"{text}; misses {report.misses()}",
                flush=True,
            )
            found.append(
                {
                    "trace": name,
                    "nodes": used.nodes,
                    "changeover_s": changeover_s,
                    "work_per_dollar_gain": gain,
                    **report.as_json(),
                }
            )
    return found


def print_counts(traces: Path) -> None:
    """The counts of every recorded zone, as fleet/recorded.py holds them."""
    nothing = Hazards(up=(1e-4,) * BINS, down=(1e-4,) * BINS)
    for trace in read_traces(traces / "windows") + read_traces(traces / "zones-2023-02"):
        record = ZoneRecord(nothing, refresh_s=float("inf"))
        for tick, count in enumerate(trace.count.tolist()):
            if count >= 0:
                record.observe(tick * trace.tick_s, count > 0)
        print(record.counts(trace.name))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--traces", type=Path, default=ROOT.parent / "shared" / "traces")
    parser.add_argument("--thin", type=int, default=1, help="take one job of so many")
    parser.add_argument("--only", choices=("zones", "several", "gangs"), help="one part of it")
    parser.add_argument("--counts", action="store_true", help="print the counts and stop")
    args = parser.parse_args()
    if args.counts:
        print_counts(args.traces)
        return
    settings, only = Settings(thin=args.thin), args.only
    result: dict[str, object] = {
        "machine": platform.processor() or platform.machine(),
        "thin": args.thin,
    }
    if only in (None, "zones"):
        result["single_zone"] = {
            f"{d_h:g}h": single_zone(args.traces, replace(settings, changeover_s=d_h * 3600))
            for d_h in (0.2, 0.05, 0.4)
        }
    if only in (None, "several"):
        for name, every_s in (("", 12 * 3600.0), ("_every_2_days", 2 * 86400.0)):
            used = replace(settings, every_s=every_s)
            result[f"several_zones{name}"] = side_by_side(args.traces, used)
    if only in (None, "gangs"):
        result["gangs"] = gangs(args.traces, settings)
    out = ROOT / "benchmarks" / "out" / "policy.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"wrote {out.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
