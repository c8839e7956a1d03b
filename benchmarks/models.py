"""Variants of a model on this host: size, agreement with fp32, latency by batch.

    make bench-models                       # some 15 minutes on two cores: three parts
    python benchmarks/models.py --only quantization --steps 300 --threads 1
    python benchmarks/models.py --only cascade          # benchmarks/cascade.py
    python benchmarks/models.py --only generation       # benchmarks/generation.py

Each part adds its figures to benchmarks/out/models.json and leaves those of the others.

Trains a byte-level GPT on Python's own sources for minutes, publishes it with every variant on a
store in a folder that goes (--folder keeps it and what was learned), and writes what the version
holds to benchmarks/out/models.json. The model is wide and shallow, so that nearly all its weights
are in Linear layers, which are what int8 shrinks. At top level:
`int8_size_ratio` (bytes stored over fp32's) and `int8_agreement` (share of
held-out positions with fp32's likeliest byte). Below `quantization`: every row, requests a second
at the best batch that keeps --slo-ms, and what would be chosen.

A peer stands beside them and is not offered: torch's own `quantize_dynamic`, which torch deprecates
and which rounds the activations of a whole batch together, so that an answer depends on its
company; `company` says at how many positions, for each. What else the machine does is in every
latency; the variants take turns, so it is in all alike.
"""

from __future__ import annotations

import argparse
import copy
import os
import platform
import subprocess
import tempfile
import time
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

import generation
import numpy as np
import torch
from generation import merge
from rich.console import Console
from rich.table import Table

from rayburst.checkpoint import Checkpointer, ObjectStore
from rayburst.errors import VariantError
from rayburst.models import ModelRegistry, ModelVersion
from rayburst.models.measure import BATCHES, measure, spread
from rayburst.models.publish import publish_variants
from rayburst.models.quantize import SCHEMES
from rayburst.serve.variants import Wanted, choose
from rayburst.train.corpus import held_out, keep_text, open_corpus
from rayburst.train.gpt import GPT
from rayburst.train.keeper import FOLDER
from rayburst.train.learner import CLIP_NORM, make_optimizer
from rayburst.train.sources import find_sources

OUT = Path(__file__).parent / "out" / "models.json"
RUN, NAME = "bench", "bench"
BATCH = 16
PARTS = ("quantization", "cascade", "generation")


def train(store: ObjectStore, args: argparse.Namespace) -> None:
    """Train in this process and leave a checkpoint as the training job does."""
    folder = store.child(f"runs/{RUN}")
    keep_text(folder, find_sources())
    torch.manual_seed(args.seed)
    model = GPT.shaped("micro", n_embd=args.width, n_head=8, n_layer=args.layers)
    block = model.config.block_size
    samples = open_corpus(folder, block_size=block, seed=args.seed).samples
    optimizer, schedule = make_optimizer(model, lr=1e-3, steps=args.steps)
    epoch = np.zeros(BATCH, dtype=np.int64)
    began, loss = time.perf_counter(), torch.zeros(())
    for step in range(args.steps):
        inputs, targets = samples.batch(epoch, np.arange(step * BATCH, (step + 1) * BATCH))
        loss = model(inputs, targets)[1]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        schedule.step()
    print(
        f"{model.parameter_count / 1e6:.1f} M parameters, {args.steps} steps in "
        f"{time.perf_counter() - began:.0f} s, loss {loss.item():.3f} nats"
    )
    with Checkpointer(folder.child(FOLDER)) as checkpoints:
        checkpoints.save(
            {"model": model.state_dict()},
            step=args.steps,
            data={"step": args.steps, "samples": args.steps * BATCH},
            config={"run": RUN, "user": {"model": model.config.to_dict(), "data": "Python"}},
        )


def deprecated(model: GPT) -> Any:
    """torch's own dynamic int8, scales by row."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.ao.quantization import per_channel_dynamic_qconfig, quantize_dynamic

        how = {torch.nn.Linear: per_channel_dynamic_qconfig}
        return quantize_dynamic(copy.deepcopy(model), how)


@torch.inference_mode()
def company(models: dict[str, Any], texts: torch.Tensor) -> dict[str, float]:
    """Share of positions whose likeliest byte differs alone and among 32 texts."""
    rows = texts[:32, :-1]
    return {
        name: float(
            torch.stack(
                [
                    together.argmax(-1) != model(rows[n : n + 1])[0][0].argmax(-1)
                    for n, together in enumerate(model(rows)[0])
                ]
            )
            .float()
            .mean()
        )
        for name, model in models.items()
    }


def beside(loaded: dict[str, GPT], text: Any, args: argparse.Namespace) -> dict[str, Any]:
    """The peer, in turns with fp32, and how much company changes answers."""
    models = {"fp32": loaded["fp32"], "peer": deprecated(loaded["fp32"])}
    texts = spread(text, block=loaded["fp32"].config.block_size, count=64)
    table = measure(models, texts, rounds=5, threads=args.threads)
    return {
        "peer": table["peer"].model_dump(),
        "peer_fp32": table["fp32"].model_dump(),
        "company": company({**loaded, "quantize_dynamic": models["peer"]}, texts),
    }


def result(version: ModelVersion, args: argparse.Namespace) -> dict[str, Any]:
    """What the version's table says."""
    by = {v.name: v for v in version.variants}
    rows = {
        v.name: {"bytes": v.size_bytes, **(v.measured.model_dump() if v.measured else {})}
        for v in version.variants
    }
    per_s = {}
    for name, variant in by.items():
        try:
            per_s[name] = choose((variant,), Wanted(slo_ms=args.slo_ms, agreement=0)).per_s
        except VariantError:
            per_s[name] = None
    try:
        chosen: Any = choose(version.variants, Wanted(slo_ms=args.slo_ms)).__repr__()
    except VariantError as error:
        chosen = str(error)
    fp32 = by["fp32"]
    int8 = by["int8"]
    if int8.measured is None:
        raise SystemExit("int8 was not measured")
    return {
        "int8_size_ratio": int8.size_bytes / fp32.size_bytes,
        "int8_agreement": int8.measured.agreement,
        "per_s_within_slo": per_s,
        "speed_vs_fp32": {n: v / per_s["fp32"] for n, v in per_s.items() if v and per_s["fp32"]},
        "slo_ms": args.slo_ms,
        "choice": chosen,
        "variants": rows,
    }


def show(found: dict[str, Any]) -> None:
    table = Table(title="variants of one model on this host; median ms by batch")
    rows = {**found["variants"], "quantize_dynamic (not offered)": found["peer"]}
    for column in ("variant", "MB", "agrees", "bits/byte", *map(str, BATCHES)):
        table.add_column(column)
    for name, row in rows.items():
        size = f"{row['bytes'] / 1e6:.2f}" if row.get("bytes") else ""
        times = [f"{r['median_ms']:.1f}" for r in row["latency"]]
        words = (f"{row['agreement']:.4f}", f"{row['bits_per_byte']:.4f}")
        table.add_row(name, size, *words, *times)
    Console(width=140).print(table)
    print(f"int8_size_ratio {found['int8_size_ratio']:.4f}, to reach 0.27 or less")
    print(f"int8_agreement  {found['int8_agreement']:.4f}, to reach 0.98 or more")
    print(f"within {found['slo_ms']} ms: {found['per_s_within_slo']}; {found['choice']}")


def machine() -> dict[str, Any]:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    return {
        "cores": len(os.sched_getaffinity(0)),
        "load_before": os.getloadavg()[0],
        "python": platform.python_version(),
        "torchao": metadata.version("torchao"),
        "commit": commit,
    }


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--only", default=",".join(PARTS), help="parts by comma (default: all)")
    p.add_argument("--steps", type=int, default=80)
    p.add_argument("--width", type=int, default=512)
    p.add_argument("--layers", type=int, default=4)
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--slo-ms", type=float, default=500.0)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--folder", help="of the models; a teacher that is there is used again")
    p.add_argument("--student-steps", type=int, default=200)
    p.add_argument("--agreement", type=float, default=0.98, help="that the cascade is to reach")
    p.add_argument("--rounds", type=int, default=5, help="of the cascade's load, of generation")
    p.add_argument("--seconds", type=float, default=6.0, help="of each load of the cascade")
    p.add_argument("--presets", default="micro,tiny,small", help="of generation, by comma")
    args = p.parse_args()
    wanted = args.only.split(",")
    if unknown := set(wanted) - set(PARTS):
        p.error(f"--only {','.join(sorted(unknown))}: there are {', '.join(PARTS)}")
    if "generation" in wanted:
        words = ["--presets", args.presets, "--rounds", str(args.rounds)]
        generation.main([*words, "--threads", str(args.threads)])
    if wanted != ["generation"]:
        with tempfile.TemporaryDirectory() as temporary:
            of_models(ModelRegistry.open(args.folder or temporary), wanted, args)


def of_models(models: ModelRegistry, wanted: list[str], args: argparse.Namespace) -> None:
    """The parts that stand on one trained model."""
    about = {"machine": machine(), "args": vars(args)}
    if NAME not in models.names():
        train(models.store, args)
        models.publish(f"{RUN}@{args.steps}", name=NAME)
    if "quantization" in wanted:
        quantization(models, about, args)
    if "cascade" in wanted:
        import cascade  # starts Ray

        found = cascade.run(models, f"{NAME}@1", args)
        merge(OUT, found | {"cascade": found["cascade"] | about})
        print(f"cascade_p95_vs_teacher {found['cascade_p95_vs_teacher']:.3f}")


def quantization(models: ModelRegistry, about: dict[str, Any], args: argparse.Namespace) -> None:
    """Every variant, and the peer beside them."""
    version = publish_variants(models, f"{NAME}@1", SCHEMES, threads=args.threads, say=print)
    loaded = {v.name: models.load(version.ref, v.name)[0] for v in version.variants}
    found = {**result(version, args), **about}
    keep(found)  # what follows is about the peer alone
    text = held_out(models.store.child(f"runs/{RUN}"))
    if text is None:
        raise SystemExit("the run kept no text")
    found |= beside(loaded, text[0], args)
    keep(found)
    show(found)


def keep(found: dict[str, Any]) -> None:
    """Into the file, beside what other parts have put there."""
    top = {name: found[name] for name in ("int8_size_ratio", "int8_agreement")}
    merge(OUT, top | {"quantization": found})


if __name__ == "__main__":
    main()
