"""Measure on one node what share of its device's peak a transformer reaches; about a minute.

    ray job submit -- python jobs/probe.py --use-gpu --accelerator H100 --layers 32 --width 4096
    ray job submit -- python jobs/probe.py --layers 4 --width 256 --precision fp32      (a CPU)

Prints a table, the option for `rayburst hardware` (`--utilisation H100=0.42`), and last
`RESULT {json}`. A model that does not fit one device is measured with fewer --layers: the share
hardly depends on them. Exit code: 0 done, 1 the probe failed, 2 wrong input.
"""

import argparse
import json
import sys

import ray

from rayburst.cost.probe_gpt import ProbeSetup, probe_gpt
from rayburst.errors import RayburstError
from rayburst.train.gpt import GPTConfig

COUNTS = {
    "layers": (12, "layers of the model"),
    "width": (768, "its hidden width"),
    "heads": (12, "its attention heads"),
    "vocabulary": (32_000, "tokens that it knows"),
    "sequence": (1024, "tokens of one sample"),
    "micro-batch": (1, "samples a step"),
    "steps": (8, "steps that are timed"),
}


def parse() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for name, (default, says) in COUNTS.items():
        p.add_argument(f"--{name}", type=int, default=default, help=f"{says} (default: {default})")
    p.add_argument("--precision", default="bf16", choices=("fp32", "fp16", "bf16"))
    p.add_argument("--use-gpu", action="store_true", help="one GPU; else one CPU")
    p.add_argument("--accelerator", help="only on this type of GPU, as Ray calls it")
    return p.parse_args()


def main() -> int:
    args = parse()
    try:
        config = GPTConfig(
            vocab_size=args.vocabulary,
            block_size=args.sequence,
            n_layer=args.layers,
            n_head=args.heads,
            n_embd=args.width,
        )
        setup = ProbeSetup(micro_batch=args.micro_batch, precision=args.precision, steps=args.steps)
    except (ValueError, RayburstError) as error:
        print(f"probe.py: {error}", file=sys.stderr)
        return 2
    needs = {"num_gpus": 1} if args.use_gpu else {"num_cpus": 1}
    if args.accelerator:
        needs["accelerator_type"] = args.accelerator
    ray.init()
    try:
        device = "cuda" if args.use_gpu else "cpu"
        seen = ray.get(ray.remote(probe_gpt).options(**needs).remote(config, setup, device=device))
    except (ray.exceptions.RayTaskError, ray.exceptions.OutOfMemoryError) as error:
        print(f"probe.py: the probe failed\n{error}", file=sys.stderr)
        return 1
    print(seen.table())
    print(seen.option or "rayburst's catalogue does not know this device: no option to give")
    print(f"RESULT {json.dumps(seen.to_dict())}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
