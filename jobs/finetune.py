"""Fine-tune any torch module, elastically: all of it or with LoRA, from and to safetensors.

    ray job submit --working-dir . -- python jobs/finetune.py --run mine --workers 1:4 \\
        --model mine.models:Net --weights s3://models/base --data mine.data:pairs \\
        --loss torch.nn.functional:mse_loss --lora-rank 8 --lora-targets '*.up' '*.down'

MODULE:NAME is imported on every worker and called with its JSON arguments. The data is a dataset of
(inputs, targets). The same --run again resumes from its newest checkpoint. The last line is
`RESULT {json}`: where weights and adapters are. Exit code: 0 done, 1 failed, 2 wrong input.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from rayburst.errors import TrainError
from rayburst.train.driver import exit_code
from rayburst.train.finetune import TuneConfig
from rayburst.train.finetune_job import finetune
from rayburst.train.lm import default_storage, worker_range
from rayburst.train.trainer import Workers

OPTIONS: dict[str, dict[str, object]] = {
    "model": {"metavar": "MODULE:NAME", "required": True, "help": "what makes the nn.Module"},
    "model-args": {"type": json.loads, "metavar": "JSON", "help": "such as '{\"width\": 64}'"},
    "data": {"metavar": "MODULE:NAME", "required": True, "help": "what makes the dataset"},
    "data-args": {"type": json.loads, "metavar": "JSON", "help": "what it is called with"},
    "loss": {
        "metavar": "MODULE:NAME",
        "help": "of (output, targets) (default: model(inputs, targets) gives (output, loss))",
    },
    "weights": {"metavar": "PLACE", "help": "safetensors to begin with: a folder or a file"},
    "lora-rank": {"type": int, "help": "rank of the adapters (default: 0, all weights learn)"},
    "lora-targets": {"nargs": "+", "metavar": "PATTERN", "help": "linear layers (default: '*')"},
    "steps": {"type": int, "help": "steps in all (default: 100)"},
    "global-batch": {"type": int, "help": "samples a step over all workers (default: 16)"},
    "micro-batch": {"type": int, "help": "samples a worker takes at once (default: its share)"},
    "lr": {"type": float, "help": "peak learning rate (default: 1e-4)"},
    "seed": {"type": int, "help": "new weights and order of the samples (default: 0)"},
    "mode": {"choices": ("fast", "exact"), "help": "exact: the same bits at any number of workers"},
    "checkpoint-every": {"type": float, "metavar": "SECONDS", "help": "(default: what pays)"},
}
ELSEWHERE = ("workers", "run", "storage", "use_gpu", "checkpoint_every", "lora_targets")


def parse() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for name, how in OPTIONS.items():
        p.add_argument(f"--{name}", **{"default": None, **how})  # type: ignore[arg-type]
    p.add_argument("--run", required=True, help="name of the run; the same name resumes")
    p.add_argument("--storage", help="where runs are kept (default: $RAYBURST_STORE/runs, else ~)")
    p.add_argument("--workers", type=worker_range, default=(1, 1), help="MIN:MAX (default: 1)")
    p.add_argument("--use-gpu", action="store_true", help="one GPU a worker")
    return p.parse_args()


def main() -> int:
    args, say = parse(), lambda text: print(text, flush=True)

    def work() -> dict[str, Any]:
        given = {k: v for k, v in vars(args).items() if v is not None and k not in ELSEWHERE}
        given["lora_targets"] = tuple(args.lora_targets or ("*",))
        config = TuneConfig(**given, checkpoint_every_s=args.checkpoint_every)
        workers = Workers(least=args.workers[0], most=args.workers[1], use_gpu=args.use_gpu)
        storage = args.storage or default_storage(os.environ, say=say)
        return finetune(config, run=args.run, storage=storage, workers=workers, say=say)

    return exit_code("finetune.py", work, wrong=(TrainError,))


if __name__ == "__main__":
    sys.path.insert(0, str(Path.cwd()))  # modules beside the job, as `python -m` finds them
    sys.exit(main())
