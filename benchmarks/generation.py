"""Continuous batching beside static batches and one text at a time: tokens per second.

    .venv/bin/python benchmarks/generation.py                 # some four minutes on a quiet machine
    .venv/bin/python benchmarks/generation.py --presets micro --rounds 1

All texts are asked at once; their lengths are mixed, as a log-normal draws them: most are short, a
few are long. The ways run one after the other in every round. Only tokens that were asked for
count. The numbers go to benchmarks/out/generation.json and, by the same names, to
benchmarks/out/models.json, where those of other benchmarks stay.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from rayburst.serve.decode import Generation, generate
from rayburst.serve.generate.engine import Engine, EngineOptions
from rayburst.serve.generate.request import Request
from rayburst.train.gpt import GPT, PRESETS

OUT = Path(__file__).parent / "out"
MAIN = "tiny"  # whose ratios stand at top level
SEED = 7


def workload(number: int, block: int) -> list[Request]:
    """Prompts of 4 to block / 4 random bytes; 2 to block / 2 tokens to write, median block / 12."""
    draw = random.Random(SEED)
    requests = []
    for _ in range(number):
        prompt = draw.randbytes(draw.randint(4, block // 4))
        length = round(draw.lognormvariate(0, 1.0) * block / 12)
        most = min(max(length, 2), block // 2)
        requests.append(Request(prompt=prompt, max_tokens=most, temperature=0.0))
    return requests


def old(request: Request, most: int | None = None) -> Generation:
    return Generation(
        prompt=request.prompt, max_new_tokens=most or request.max_tokens, temperature=0.0,
        top_k=None, seed=0,
    )  # fmt: skip


def one_at_a_time(model: GPT, requests: list[Request], rows: int) -> list[bytes]:
    return [generate(model, [old(request)])[0] for request in requests]


def static(model: GPT, requests: list[Request], rows: int) -> list[bytes]:
    """Batches in order of arrival; a batch runs until its longest text is there."""
    texts = []
    for first in range(0, len(requests), rows):
        batch = requests[first : first + rows]
        longest = max(request.max_tokens for request in batch)
        made = generate(model, [old(request, longest) for request in batch])
        texts += [text[: r.max_tokens] for text, r in zip(made, batch, strict=True)]
    return texts


def shrinking(model: GPT, requests: list[Request], rows: int) -> list[bytes]:
    """The same, but texts that are done leave their batch: rayburst's own batches before."""
    texts = []
    for first in range(0, len(requests), rows):
        texts += generate(model, [old(request) for request in requests[first : first + rows]])
    return texts


def continuous(model: GPT, requests: list[Request], rows: int) -> list[bytes]:
    engine = Engine(model, EngineOptions(max_running=rows))
    texts = {engine.add(request): b"" for request in requests}
    while engine.is_busy:
        for event in engine.step():
            texts[event.writing] += event.data
    return list(texts.values())


WAYS: dict[str, Callable[[GPT, list[Request], int], list[bytes]]] = {
    "one at a time": one_at_a_time,
    "static batches": static,
    "batches that shrink": shrinking,
    "continuous": continuous,
}


def measured(preset: str, number: int, rounds: int, rows: int) -> dict[str, Any]:
    """Tokens a second of each way, every round, for one model."""
    torch.manual_seed(SEED)
    model = GPT(PRESETS[preset]).eval().requires_grad_(False)
    requests = workload(number, model.config.block_size)
    tokens = sum(request.max_tokens for request in requests)
    runs: dict[str, list[float]] = {way: [] for way in WAYS}
    texts: dict[str, list[bytes]] = {}
    for way in WAYS.values():
        way(model, requests[:2], rows)
    for _ in range(rounds):
        for name, way in WAYS.items():
            started_s = time.perf_counter()
            texts[name] = way(model, requests, rows)
            runs[name].append(round(tokens / (time.perf_counter() - started_s), 1))
    alone = texts["one at a time"]
    return {
        "parameters": model.parameter_count,
        "texts": number,
        "tokens": tokens,
        "longest": max(request.max_tokens for request in requests),
        "tokens_per_s": runs,
        "median": {name: statistics.median(found) for name, found in runs.items()},
        # float32 rounds differently in a batch: a text may depart where two tokens are as good
        "same_texts": {
            name: sum(a == b for a, b in zip(alone, made, strict=True)) / number
            for name, made in texts.items()
        },
    }


def ratios(cell: dict[str, Any]) -> dict[str, float]:
    median = cell["median"]
    return {
        "tokens_vs_one_at_a_time": round(median["continuous"] / median["one at a time"], 2),
        "tokens_vs_static_batch": round(median["continuous"] / median["static batches"], 2),
        "tokens_vs_shrinking_batch": round(median["continuous"] / median["batches that shrink"], 2),
    }


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--presets", default="micro,tiny,small", help="models, by comma")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="of torch, as a replica of one CPU")
    parser.add_argument("--texts", type=int, default=192, help="a sixth of it for small")
    parser.add_argument("--rows", type=int, default=64, help="texts in a batch, engine's places")
    args = parser.parse_args(words)
    torch.set_num_threads(args.threads)
    load = os.getloadavg()[0]
    cells = {}
    for preset in args.presets.split(","):
        number = args.texts // 6 if preset == "small" else args.texts
        cells[preset] = measured(preset, number, args.rounds, args.rows)
        cells[preset] |= ratios(cells[preset])
        show(preset, cells[preset])
    result: dict[str, Any] = {"generation": {"models": cells, **circumstances(args, load)}}
    if MAIN in cells:
        result = ratios(cells[MAIN]) | result
    for name in ("generation.json", "models.json"):
        merge(OUT / name, result)


def circumstances(args: argparse.Namespace, load: float) -> dict[str, Any]:
    command = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "commit": commit, "seed": SEED, "rounds": args.rounds, "threads": args.threads,
        "rows": args.rows, "cores": os.cpu_count(), "machine": platform.processor(),
        "torch": torch.__version__, "load_before": round(load, 2),
    }  # fmt: skip


def merge(path: Path, result: dict[str, Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    before = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(before | result, indent=1) + "\n")


def show(preset: str, cell: dict[str, Any]) -> None:
    print(f"{preset}: {cell['texts']} texts, {cell['tokens']} tokens, longest {cell['longest']}")
    for way, found in cell["tokens_per_s"].items():
        same = cell["same_texts"][way]
        print(f"  {way:20} {cell['median'][way]:8.0f} tokens/s  {same:4.0%} same  {found}")
    print("  " + ", ".join(f"{name} {value}" for name, value in ratios(cell).items()))


if __name__ == "__main__":
    main()
