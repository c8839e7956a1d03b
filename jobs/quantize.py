"""Make cheaper variants of a published model, and measure each on the node that this runs on.

    ray job submit -- python jobs/quantize.py --model gpt@3 --variants bf16 int8 --threads 1
    ray job submit -- python jobs/quantize.py --model gpt@3 --text s3://corpus/held-out

The result is the next version: the same fp32 weights, the variants, and a table of size, agreement
with fp32 on held-out text and latency by batch. The last line is `RESULT {json}`. Exit code: 0
done, 1 it cannot be done, 2 wrong input.
"""

import argparse
import json
import os
import sys

import numpy as np

from rayburst.errors import RayburstError
from rayburst.models.publish import publish_variants
from rayburst.models.quantize import SCHEMES
from rayburst.models.registry import ModelRegistry
from rayburst.train.text import load_text


def parse() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--model", required=True, metavar="NAME@VERSION", help="for example gpt@3")
    p.add_argument(
        "--variants", nargs="+", default=["bf16", "int8"], choices=SCHEMES, help="besides fp32"
    )
    p.add_argument("--text", nargs="+", help="text to compare on (default: what its run held out)")
    p.add_argument("--threads", type=int, help="of torch; what a replica will have (default: all)")
    p.add_argument(
        "--store",
        default=os.environ.get("RAYBURST_STORE"),
        help="object store of the models (default: $RAYBURST_STORE)",
    )
    return p.parse_args()


def main() -> int:
    args = parse()
    if not args.store:
        print("no --store and no RAYBURST_STORE: give --store s3://bucket", file=sys.stderr)
        return 2
    try:
        given = load_text(tuple(args.text)) if args.text else None
        made = publish_variants(
            ModelRegistry.open(args.store),
            args.model,
            args.variants,
            text=None if given is None else np.concatenate((given.train, given.validation)),
            threads=args.threads,
            say=lambda line: print(line, flush=True),
        )
    except RayburstError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    table = {
        v.name: {"bytes": v.size_bytes, **v.measured.model_dump()}
        for v in made.variants
        if v.measured
    }
    print(f"RESULT {json.dumps({'version': made.ref, 'variants': table})}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
