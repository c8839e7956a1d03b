"""Search for good settings of the language model with ASHA, on machines that may be taken away.

    ray job submit -- python jobs/tune_lm.py --run s1 --set lr=log:1e-4..1e-2 global_batch=16,32

--set NAME=LOW..HIGH, NAME=log:LOW..HIGH or NAME=VALUE,VALUE; names: lr, global_batch, micro_batch,
preset, seed. A trial is one process, is compared at --first-rung steps, --factor times as many, and
so on, and stopped unless it is among the best 1/FACTOR. An interrupted trial resumes from its own
checkpoint; the same --run again goes on, also after a kill, and finds the same best trial. A page
with the curves is written to search.html in the search's folder. The last line is `RESULT {json}`.
Exit code: 0 done, 1 failed, 2 wrong input.
"""

import argparse
import os
import sys
from typing import Any

from rayburst.errors import DataError
from rayburst.train.driver import exit_code
from rayburst.train.lm import default_storage
from rayburst.train.search import Rungs, Search
from rayburst.train.search.lm import search_lm
from rayburst.train.search.space import parse_space

OPTIONS: dict[str, tuple[int | None, str]] = {
    "trials": (8, "how many settings are drawn"),
    "steps": (300, "steps of a trial that is not stopped"),
    "first-rung": (30, "steps before the first comparison"),
    "factor": (3, "of three trials the best one goes on"),
    "seed": (0, "of the draws"),
    "at-once": (0, "trials at a time, 0 for as many as fit"),
    "cpus": (1, "CPUs of a trial"),
    "preset": (None, "size of the model (default: micro)"),
    "column": (None, "column of Parquet files (default: text)"),
    "storage": (None, "where runs are kept (default: $RAYBURST_STORE/runs, else ~/rayburst/runs)"),
}


def parse() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--run", required=True, help="name of the search; the same name goes on")
    p.add_argument("--set", nargs="+", required=True, metavar="NAME=...", help="the space")
    for name, (usual, means) in OPTIONS.items():
        kind, told = (str, means) if usual is None else (int, f"{means} (default: {usual})")
        p.add_argument(f"--{name}", type=kind, default=usual, help=told)
    p.add_argument("--data", nargs="+", metavar="PLACE", help="text or Parquet (default: Python's)")
    p.add_argument("--checkpoint-every", type=float, metavar="SECONDS", help="(default: what pays)")
    p.add_argument("--use-gpu", action="store_true", help="one GPU a trial")
    return p.parse_args()


def what(args: argparse.Namespace) -> Search:
    fixed = {name: getattr(args, name) for name in ("preset", "data", "column")}
    return Search(
        run=args.run,
        storage=args.storage or default_storage(os.environ, say=print),
        space=parse_space(args.set),
        fixed={name: value for name, value in fixed.items() if value is not None},
        rungs=Rungs(steps=args.steps, first=args.first_rung, factor=args.factor),
        checkpoint_every_s=args.checkpoint_every,
        use_gpu=args.use_gpu,
        **{name: getattr(args, name) for name in ("trials", "seed", "at_once", "cpus")},
    )


def main() -> int:
    args = parse()

    def work() -> dict[str, Any]:
        found = search_lm(what(args), say=lambda text: print(text, flush=True))
        print(found.table())
        return found.to_json()

    return exit_code("tune_lm.py", work, wrong=(DataError,))


if __name__ == "__main__":
    sys.exit(main())
