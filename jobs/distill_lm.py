"""Distil a published model into a smaller one, elastically, and publish it as a variant.

    ray job submit -- python jobs/distill_lm.py --teacher gpt@1 --preset micro --workers 1:4
    ray job submit -- python jobs/distill_lm.py --teacher gpt@1 --layers 1 --width 64 --also int8
    ray job submit -- python jobs/distill_lm.py --teacher s3://fleet/runs/first@300 --name gpt

The student learns the teacher's answers to its text (Hinton's loss). It becomes the next version:
gpt@1 with a variant `student`, measured beside the others. The same --run again resumes, at any
number of workers. The last line is `RESULT {json}`. Exit code: 0 done, 1 it failed, 2 wrong input.
"""

import argparse
import os
import sys
import time
from typing import Any

from rayburst.errors import CheckpointError, DataError, VersionError
from rayburst.models.distill_job import Distillation, distill
from rayburst.models.quantize import SCHEMES
from rayburst.train.driver import exit_code
from rayburst.train.gpt import PRESETS
from rayburst.train.lm import default_storage, worker_range
from rayburst.train.trainer import Workers

AS_PRESET = "(default: what suits the preset)"
OPTIONS: dict[str, dict[str, object]] = {
    "name": {"help": "of the model, where the teacher is a checkpoint: it is published as well"},
    "layers": {"type": int, "help": "of the student (default: the preset's)"},
    "heads": {"type": int, "help": "of its attention (default: the preset's)"},
    "width": {"type": int, "help": "of its embedding (default: the preset's)"},
    "temperature": {"type": float, "help": "of both in the loss (default: 2)"},
    "soft": {"type": float, "help": "share of the teacher in the loss, the rest is the text's"},
    "data": {"nargs": "+", "metavar": "PLACE", "help": "text to learn on (default: the teacher's)"},
    "column": {"help": "column of Parquet files to read (default: text)"},
    "workers": {"type": worker_range, "metavar": "MIN:MAX", "help": "for example 1:4 (default: 1)"},
    "steps": {"type": int, "help": f"steps in all {AS_PRESET}"},
    "global-batch": {"type": int, "help": f"samples a step over all workers {AS_PRESET}"},
    "micro-batch": {"type": int, "help": f"samples a worker takes at once {AS_PRESET}"},
    "lr": {"type": float, "help": f"peak learning rate {AS_PRESET}"},
    "run": {"help": "name of the run; the same name resumes (default: a new one)"},
    "storage": {"help": "place of runs (default: $RAYBURST_STORE/runs, else ~/rayburst/runs)"},
    "mode": {"choices": ("fast", "exact"), "help": "exact: the same bits at any number of workers"},
    "checkpoint-every-s": {"type": float, "metavar": "SECONDS", "help": "(default: what pays)"},
    "seed": {"type": int, "help": "initial weights and order of the samples (default: 0)"},
    "variant": {"help": "name of the student in the version (default: student)"},
    "also": {"nargs": "+", "choices": SCHEMES, "help": "cheaper forms: int8 gives student-int8"},
    "threads": {"type": int, "help": "of torch while measuring; what a replica will have"},
}


def parse() -> dict[str, Any]:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    teacher = "a version, gpt@1, or the address of a checkpoint, s3://fleet/runs/first@300"
    p.add_argument("--teacher", required=True, help=teacher)
    p.add_argument("--preset", choices=PRESETS, default="micro", help="of the student")
    p.add_argument("--store", default=os.environ.get("RAYBURST_STORE"), help="of the models")
    p.add_argument("--use-gpu", action="store_true", help="one GPU a worker: NCCL and bfloat16")
    for name, how in OPTIONS.items():
        p.add_argument(f"--{name}", default=None, **how)  # type: ignore[arg-type]
    return {name: value for name, value in vars(p.parse_args()).items() if value is not None}


def main() -> int:
    def work() -> dict[str, Any]:
        least, most = (given := parse()).pop("workers", (1, 1))
        workers = Workers(least=least, most=most, use_gpu=given.pop("use_gpu"))
        given.setdefault("run", f"student-{time.strftime('%Y%m%d-%H%M%S')}")
        given.setdefault("storage", default_storage(os.environ, say=print))
        given |= {name: tuple(given[name]) for name in ("data", "also") if name in given}
        return distill(
            Distillation(**given), workers=workers, say=lambda text: print(text, flush=True)
        )

    return exit_code("distill_lm.py", work, wrong=(DataError, VersionError, CheckpointError))


if __name__ == "__main__":
    sys.exit(main())
