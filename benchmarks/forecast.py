"""How often forecasts of end and cost held what then happened, on recorded spot markets.

    python benchmarks/forecast.py [--traces ../shared/traces] [--paths 60] [--every 36h]

Every zone is forecast with a prior that leaves it out and its own past before the start. Starts are
36 h apart, so neighbours share days: the number of independent cases is smaller than the count.
Writes benchmarks/out/forecast.json: every case.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np

from rayburst.cost.coverage import Check, check
from rayburst.cost.forecast import COVERS, JobNeeds, Terms
from rayburst.fleet.hazards import pooled_prior
from rayburst.fleet.recorded import RECORDED
from rayburst.fleet.replay.traces import read_traces
from rayburst.fleet.units import duration_s

OUT = Path(__file__).parent / "out" / "forecast.json"
TERMS = Terms(spot_usd_per_hour=0.9731, on_demand_usd_per_hour=3.06)
SETS = (("windows", 1), ("zones-2023-02", 3))  # 195 s readings: one of three


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--traces", type=Path, default=Path("../shared/traces"))
    parser.add_argument("--paths", type=int, default=60)
    parser.add_argument("--every", default="36h")
    given = parser.parse_args()
    needs = JobNeeds(work_s=24 * 3600.0, deadline_s=36 * 3600.0, changeover_s=720.0)
    found: list[Check] = []
    for name, thin in SETS:
        for trace in read_traces(given.traces / name):
            prior = pooled_prior(RECORDED, without=[trace.name])
            cases = check(
                trace, needs, TERMS, prior=prior, every_s=duration_s(given.every),
                paths=given.paths, thin=thin,
            )  # fmt: skip
            held = list(cases)
            found += held
            print(f"{trace.name:22} {shares(held)}", flush=True)
    print(f"{'all':22} {shares(found)}   stated: {COVERS:.0%}")
    OUT.parent.mkdir(exist_ok=True)
    told = {
        "command": " ".join(sys.argv),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "stated": COVERS,
        "needs": asdict(needs),
        "cases": [row(one) for one in found],
    }
    OUT.write_text(json.dumps(told, indent=1) + "\n")


def shares(cases: list[Check]) -> str:
    parts = []
    for option in ("spot", "mixed"):
        mine = [one for one in cases if one.option == option]
        if mine:
            hours = np.mean([one.is_hours_held for one in mine])
            usd = np.mean([one.is_usd_held for one in mine])
            parts.append(f"{option}: end {hours:.0%}, cost {usd:.0%} of {len(mine)}")
    return "   ".join(parts)


def row(one: Check) -> dict[str, object]:
    option = one.told.option(one.option)
    return {
        "zone": one.zone,
        "start_s": one.start_s,
        "option": one.option,
        "hours": one.hours if math.isfinite(one.hours) else None,
        "usd": one.usd,
        "forecast": {
            key: {k: v if math.isfinite(v) else None for k, v in asdict(span).items()}
            for key, span in (("hours", option.hours), ("usd", option.usd))
            if span is not None
        },
        "is_hours_held": one.is_hours_held,
        "is_usd_held": one.is_usd_held,
    }


if __name__ == "__main__":
    main()
