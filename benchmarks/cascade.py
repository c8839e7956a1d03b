"""Student, cascade and teacher on held-out text: agreement, bits per byte, latency by load.

    python benchmarks/models.py --only cascade      # some eight minutes on two cores

The teacher is the model of benchmarks/models.py; the student a `micro` GPT that is distilled from
it (rayburst.models.distill) and published as its variant, which also measures the threshold. All
three are Serve applications on this machine, one replica of one thread each, on Serve's stock path.
They are asked for the next byte of held-out texts, as requests come (Poisson), at shares of what
the teacher alone answers at most. The texts are not those that the threshold was chosen on.

`cascade_p95_vs_teacher` is the ratio of the medians of p95 over the rounds at the highest load.
Latency counts from the moment a request was due; the client runs on the same cores.
"""

from __future__ import annotations

import asyncio
import math
import os
import random
import statistics
import time
from dataclasses import asdict
from typing import Any

import aiohttp
import numpy as np
import ray
import torch
from ray import serve
from rich.console import Console
from rich.table import Table

from rayburst.fleet.processes import free_ports
from rayburst.models import ModelRegistry, ModelVersion
from rayburst.models.distill import DistillConfig, learn
from rayburst.models.escalation import threshold_for
from rayburst.models.students import publish_student
from rayburst.serve.lm_cascade import CascadeArgs, NextByte, build
from rayburst.serve.served import model
from rayburst.train.corpus import held_out
from rayburst.train.gpt import GPT, PRESETS
from rayburst.train.text import Bytes

SHARES = (0.2, 0.5, 0.8)
SLO_MS = 5000.0  # nothing is refused: the latencies are to be seen


def distilled(models: ModelRegistry, ref: str, args: Any) -> ModelVersion:
    """The version with a student."""
    teacher = models.get(ref)
    shape = {**PRESETS["micro"].to_dict(), "block_size": teacher.model.config["block_size"]}
    config = DistillConfig(
        teacher=ref,
        store=models.store.uri,
        text=models.store.child(f"runs/{teacher.checkpoint.run}").uri,
        student=shape,
        steps=args.student_steps,
        global_batch=16,
        seed=args.seed,
    )
    folder = models.store.child("runs/student").uri
    began = time.perf_counter()
    learn({**asdict(config), "folder": folder})
    print(f"student: {config.steps} steps in {time.perf_counter() - began:.0f} s")
    return publish_student(models, ref, folder, threads=args.threads, say=print)


def fresh(text: Bytes, block: int, count: int) -> torch.Tensor:
    """Windows in the middle between those that variants are measured on: [count, block + 1]."""
    starts = np.linspace(0, text.size - block - 1, 256)
    middles = ((starts[1:] + starts[:-1]) / 2).astype(np.int64)
    if middles[0] < block + 1:
        raise SystemExit("the held-out text is too short for windows of its own")
    rows = [text[s : s + block + 1] for s in middles]
    kept = [torch.from_numpy(row.astype(np.int64)) for row in rows if row.max() < 128][:count]
    return torch.stack(kept)


@torch.inference_mode()
def judged(student: GPT, teacher: GPT, rows: torch.Tensor, threshold: float) -> dict[str, Any]:
    """Agreement with the teacher and bits a byte, over all positions of the windows."""
    ours, theirs = student(rows[:, :-1])[0].float(), teacher(rows[:, :-1])[0].float()
    goes_on = ours.softmax(-1).amax(-1, keepdim=True) < threshold
    answers = {"student": ours, "cascade": torch.where(goes_on, theirs, ours), "teacher": theirs}
    likeliest = theirs.argmax(-1)
    table = {
        name: {
            "agreement": float((logits.argmax(-1) == likeliest).float().mean()),
            "bits_per_byte": float(GPT.loss(logits, rows[:, 1:])) / math.log(2),
        }
        for name, logits in answers.items()
    }
    table["cascade"]["escalated"] = float(goes_on.float().mean())
    return {"positions": rows[:, 1:].numel(), **table}


async def closed(url: str, texts: list[str], *, seconds: float) -> float:
    """Answers a second of 32 connections that each wait for theirs."""
    end, done = time.perf_counter() + seconds, 0

    async def go(session: aiohttp.ClientSession, place: int) -> None:
        nonlocal done
        while time.perf_counter() < end:
            async with session.post(url, json=texts[(place + done) % len(texts)]) as answer:
                await answer.read()
                done += answer.status == 200

    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(go(session, n) for n in range(32)))
    return done / seconds


async def stream(
    url: str, texts: list[str], right: list[int], *, rate: float, seconds: float, seed: int
) -> dict[str, Any]:
    """Requests as they come; `right`: the byte that the teacher says to each text."""
    draw, took, same, errors, by = random.Random(seed), [], [], 0, []

    async def one(session: aiohttp.ClientSession, place: int, due_s: float) -> None:
        nonlocal errors
        async with session.post(url, json=texts[place]) as answer:
            if answer.status != 200:
                errors += 1
                return
            told = await answer.json()
        took.append(time.perf_counter() - due_s)
        same.append(told["bytes"][0] == right[place])
        by.append(answer.headers.get("x-rayburst-answered-by"))

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        due_s, pending = time.perf_counter(), []
        end_s = due_s + seconds
        while (due_s := due_s + draw.expovariate(rate)) < end_s:
            await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
            pending.append(asyncio.create_task(one(session, draw.randrange(len(texts)), due_s)))
        await asyncio.gather(*pending)
    at = lambda p: 1000 * sorted(took)[min(len(took) - 1, int(p * len(took)))]  # noqa: E731
    return {
        "requests": len(pending),
        "errors": errors,
        "p50_ms": at(0.5),
        "p95_ms": at(0.95),
        "agreement": statistics.mean(same),
        "by_teacher": by.count("teacher") / len(by),
    }


def served(version: ModelVersion, threshold: float, args: Any) -> dict[str, str]:
    """Three applications; the address of each."""
    (port,) = free_ports(1)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    alone = model(slo_ms=SLO_MS, max_batch=32, keys="off")(NextByte)
    cascaded = CascadeArgs(version=version.ref, threshold=threshold, slo_ms=SLO_MS)
    apps = {
        "student": alone.bind(version.ref, "student", 5, args.threads),
        "cascade": build(cascaded),
        "teacher": alone.bind(version.ref, "fp32", 5, args.threads),
    }
    for name, app in apps.items():
        serve.run(app, name=name, route_prefix=f"/{name}")
    return {name: f"http://127.0.0.1:{port}/{name}/predict" for name in apps}


def run(models: ModelRegistry, ref: str, args: Any) -> dict[str, Any]:
    """Everything that goes into models.json under `cascade`, and its top-level keys."""
    version = distilled(models, ref, args)
    measured = version.variant("student").measured
    if measured is None:
        raise SystemExit("the student was not measured")
    point = threshold_for(measured.escalation, args.agreement)
    teacher, student = models.load(version.ref)[0], models.load(version.ref, "student")[0]
    found = held_out(models.store.child(f"runs/{version.checkpoint.run}"))
    if found is None:
        raise SystemExit("the run kept no text")
    rows = fresh(found[0], teacher.config.block_size, 255)
    quality = judged(student, teacher, rows, point.threshold)
    texts = [bytes(row[:-1].tolist()).decode() for row in rows]
    with torch.inference_mode():
        right = teacher(rows[:, :-1])[0][:, -1].argmax(-1).tolist()
    os.environ["RAYBURST_STORE"] = models.store.uri
    ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False)
    try:
        urls = served(version, point.threshold, args)
        for url in urls.values():
            asyncio.run(closed(url, texts, seconds=2))  # warm
        most = asyncio.run(closed(urls["teacher"], texts, seconds=args.seconds))
        print(f"the teacher alone answers {most:.1f}/s at most")
        cells = by_load(urls, texts, right, most, args)
    finally:
        serve.shutdown()
        ray.shutdown()
    heavy = cells[str(SHARES[-1])]
    result = {
        "teacher_most_per_s": most,
        "threshold": point.model_dump(),
        "agreement_wanted": args.agreement,
        "held_out": quality,
        "by_load": cells,
        "variants": {
            v.name: {"bytes": v.size_bytes, **v.measured.model_dump()}
            for v in version.variants
            if v.measured
        },
    }
    show(result)
    return {
        "cascade_p95_vs_teacher": heavy["cascade"]["p95_ms"] / heavy["teacher"]["p95_ms"],
        "student_agreement": quality["student"]["agreement"],
        "cascade_agreement": quality["cascade"]["agreement"],
        "cascade": result,
    }


def by_load(
    urls: dict[str, str], texts: list[str], right: list[int], most: float, args: Any
) -> dict[str, Any]:
    """Medians over rounds, in which the three take turns at each load; every round is kept."""
    runs: dict[str, dict[str, list[Any]]] = {str(s): {n: [] for n in urls} for s in SHARES}
    for turn in range(args.rounds):
        for share in SHARES:
            for name, url in urls.items():
                told = asyncio.run(
                    stream(url, texts, right, rate=share * most, seconds=args.seconds, seed=turn)
                )
                runs[str(share)][name].append(told)
    return {
        share: {
            name: {
                **{key: statistics.median(r[key] for r in told) for key in told[0]},
                "rounds": told,
            }
            for name, told in by.items()
        }
        for share, by in runs.items()
    }


def show(found: dict[str, Any]) -> None:
    table = Table(title="held-out text; ms by load, as a share of what the teacher answers at most")
    loads = [f"{s:.0%} p50/p95" for s in SHARES]
    for column in ("who", "agrees", "bits/byte", *loads, "errors"):
        table.add_column(column)
    for name in ("student", "cascade", "teacher"):
        row, cells = found["held_out"][name], [found["by_load"][str(s)][name] for s in SHARES]
        times = [f"{c['p50_ms']:.1f} / {c['p95_ms']:.1f}" for c in cells]
        errors = sum(r["errors"] for c in cells for r in c["rounds"])
        words = (f"{row['agreement']:.4f}", f"{row['bits_per_byte']:.4f}")
        table.add_row(name, *words, *times, str(errors))
    Console(width=140).print(table)
    cascade = found["held_out"]["cascade"]
    print(
        f"threshold {found['threshold']['threshold']:.3f}: {cascade['escalated']:.1%} of the "
        f"positions are asked again, {found['threshold']['escalated']:.1%} where it was chosen"
    )
