"""Train a byte-level GPT on real text, elastically: on as many workers as there are right now.

    ray job submit -- python jobs/train_lm.py --preset micro --workers 1:4
    ray job submit -- python jobs/train_lm.py --data s3://corpus/wiki --column body --run wiki-1

The same --run again resumes from its newest checkpoint, after any interruption and at any number of
workers. The last line is `RESULT {json}`. Exit code: 0 done, 1 training failed, 2 wrong input.
"""

import argparse
import os
import sys
import time
from typing import Any

from rayburst.errors import DataError, LayoutError
from rayburst.train.driver import exit_code
from rayburst.train.gpt import PRESETS
from rayburst.train.lm import LMConfig, default_storage, run, worker_range

PRESET_SAYS = "(default: what suits the preset)"
WHERE = "files, folders or URIs (s3://bucket/folder) of text or Parquet\n"
OPTIONS: dict[str, dict[str, object]] = {
    "data": {"nargs": "+", "metavar": "PLACE", "help": WHERE + "(default: Python's own sources)"},
    "column": {"help": "column of Parquet files to read (default: text)"},
    "workers": {"type": worker_range, "metavar": "MIN:MAX", "help": "for example 1:4 (default: 1)"},
    "steps": {"type": int, "help": f"steps in all {PRESET_SAYS}"},
    "global-batch": {"type": int, "help": f"samples a step over all workers {PRESET_SAYS}"},
    "micro-batch": {"type": int, "help": f"samples a worker takes at once {PRESET_SAYS}"},
    "run": {"help": "name of the run; the same name resumes (default: a new one)"},
    "storage": {"help": "place of runs (default: $RAYBURST_STORE/runs, else ~/rayburst/runs)"},
    "checkpoint-every": {"type": float, "metavar": "SECONDS", "help": "(default: what pays)"},
    "mode": {"choices": ("fast", "exact"), "help": "exact: the same bits at any number of workers"},
    "layout": {
        "help": "auto, or as tensor=2,pipeline=2: copies follow the workers (docs/layouts.md)"
    },
    "precision": {"help": "of a layout: fp32, bf16 or fp16 (default: bf16 on GPUs, else fp32)"},
    "compile-backend": {"metavar": "NAME", "help": "of a layout: torch.compile, as inductor"},
    "device-memory-gb": {"type": float, "help": "with auto: of each device (default: what it has)"},
    "lr": {"type": float, "help": f"peak learning rate {PRESET_SAYS}"},
    "seed": {"type": int, "help": "initial weights and order of the samples (default: 0)"},
}


def parse() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--preset", default="micro", choices=PRESETS, help="size (default: micro)")
    p.add_argument("--use-gpu", action="store_true", help="one GPU a worker: NCCL and bfloat16")
    p.add_argument("--recompute", action="store_true", help="of a layout: keep less, compute more")
    for name, how in OPTIONS.items():
        p.add_argument(f"--{name}", default=None, **how)  # type: ignore[arg-type]
    return p.parse_args()


def config(args: argparse.Namespace) -> LMConfig:
    given = {name: value for name, value in vars(args).items() if value is not None}
    given.setdefault("run", f"lm-{args.preset}-{time.strftime('%Y%m%d-%H%M%S')}")
    if "storage" not in given:
        given["storage"] = default_storage(os.environ, say=print)
    given["least"], given["most"] = given.pop("workers", (1, 1))
    given["data"] = tuple(given.get("data", ()))
    if "checkpoint_every" in given:
        given["checkpoint_every_s"] = given.pop("checkpoint_every")
    return LMConfig(**given)


def main() -> int:
    def work() -> dict[str, Any]:
        return run(config(parse()), say=lambda text: print(text, flush=True))

    return exit_code("train_lm.py", work, wrong=(DataError, LayoutError))


if __name__ == "__main__":
    sys.exit(main())
