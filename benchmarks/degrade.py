"""Overload answered by cheaper variants, beside shedding alone: goodput within the promise.

    python benchmarks/degrade.py                          # about nine minutes on two cores
    python benchmarks/degrade.py --steps 20 --seconds 4 --rounds 1      # a try

Trains a byte-level GPT for a minute or two, publishes it with its variants, and serves the next
byte after a text by two applications of one replica each, behind Serve's HAProxy: one has fp32
alone and sheds, the other has the ladder that the version's figures give (what is no faster here is
not on it). Requests come in an open loop, Poisson, at --loads times what fp32 answers in a closed
one, the same moments and texts for both, in turns. Good is an answer within --slo-ms of the moment
at which the request was due, whichever variant gave it.

Told for each load: good answers a second, shares of good, late and shed, answers by variant, and
how many of the answers are fp32's own (computed here, alone). The ladder's floor is --agreement.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_SERVE_ENABLE_HA_PROXY", "1")  # read when Serve is imported
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import aiohttp
import models as bench_models
import ray
import torch
from degrade_app import app
from ray import serve
from rich.console import Console
from rich.table import Table

from rayburst.models import ModelRegistry, ModelVersion
from rayburst.models.measure import spread
from rayburst.models.publish import publish_variants
from rayburst.models.quantize import SCHEMES
from rayburst.serve.variants import Wanted, ladder
from rayburst.train.corpus import held_out

OUT = Path(__file__).parent / "out" / "degrade.json"
WAYS = ("shed", "ladder")


def publish(registry: ModelRegistry, args: argparse.Namespace) -> ModelVersion:
    """Train, publish, measure."""
    bench_models.train(registry.store, args)
    run = bench_models.RUN
    version = registry.publish(f"{run}@{args.steps}", name="bench")
    return publish_variants(registry, version.ref, SCHEMES, threads=1, say=print)


@torch.inference_mode()
def truth(registry: ModelRegistry, version: ModelVersion) -> tuple[list[str], list[int]]:
    """Texts of a block of held-out bytes, and the byte that fp32 takes for the likeliest."""
    model, _ = registry.load(version.ref)
    found = held_out(registry.store.child(f"runs/{bench_models.RUN}"))
    if found is None:
        raise SystemExit("the run kept no text")
    texts = spread(found[0], block=model.config.block_size, count=256)[:, :-1]
    said: list[int] = []
    for rows in texts.split(16):
        said += model(rows)[0][:, -1].argmax(-1).tolist()
    return [bytes(row.tolist()).decode("latin-1") for row in texts], said


def start(urls: dict[str, str], plans: dict[str, tuple[dict[str, Any], list[Any]]]) -> None:
    """Deploys an application for each way."""
    for way, (options, args) in plans.items():
        serve.run(app(options, *args), name=way, route_prefix=f"/{way}")
    deadline_s = time.monotonic() + 60
    while not all(asyncio.run(is_up(url)) for url in urls.values()):
        if time.monotonic() > deadline_s:
            raise SystemExit("an application did not come up")
        time.sleep(0.5)


async def is_up(url: str) -> bool:
    """Whether the proxy knows the replica."""
    async with aiohttp.ClientSession() as session:
        try:
            async with session.get(f"{url}/healthz") as answer:
                return answer.status == 200
        except aiohttp.ClientError:
            return False


async def closed(url: str, texts: list[str], *, clients: int, seconds: float) -> float:
    """Answers a second to so many clients that each wait for their answer."""
    done, end_s = 0, time.monotonic() + seconds

    async def client(session: aiohttp.ClientSession, first: int) -> None:
        nonlocal done
        n = first
        while time.monotonic() < end_s:
            headers = {"x-rayburst-deadline-ms": "600000"}  # nobody is refused
            async with session.post(
                f"{url}/predict", json=texts[n % len(texts)], headers=headers
            ) as answer:
                await answer.read()
                done += answer.status == 200
            n += clients

    began_s = time.monotonic()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await asyncio.gather(*(client(session, n) for n in range(clients)))
    return done / (time.monotonic() - began_s)


async def opened(
    url: str, texts: list[str], said: list[int], *, rate: float, seconds: float, seed: int,
    slo_s: float,
) -> dict[str, Any]:  # fmt: skip
    """A Poisson stream; what became of its requests."""
    rng = random.Random(seed)
    statuses: Counter[int] = Counter()
    good: Counter[str] = Counter()
    agreeing: Counter[str] = Counter()
    answered: Counter[str] = Counter()
    latencies: list[float] = []
    sent_late: list[float] = []
    loop = asyncio.get_running_loop()

    async def ask(session: aiohttp.ClientSession, n: int, due_s: float) -> None:
        sent_late.append(loop.time() - due_s)
        async with session.post(f"{url}/predict", json=texts[n]) as answer:
            body = await answer.json()
            took_s = loop.time() - due_s
            statuses[answer.status] += 1
            if answer.status != 200:
                return
            variant = answer.headers["x-rayburst-variant"]
            latencies.append(took_s)
            answered[variant] += 1
            good[variant] += took_s <= slo_s
            agreeing[variant] += body == said[n]

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        asked: list[asyncio.Task[None]] = []
        begin_s = due_s = loop.time() + 0.1
        while (due_s := due_s + rng.expovariate(rate)) < begin_s + seconds:
            await asyncio.sleep(max(0.0, due_s - loop.time()))
            asked.append(asyncio.create_task(ask(session, rng.randrange(len(texts)), due_s)))
        await asyncio.gather(*asked)
    latencies.sort()
    sent_late.sort()
    count = len(asked)
    return {
        "requests": count,
        "good_per_s": good.total() / seconds,
        "good": good.total() / count,
        "late": (answered.total() - good.total() + statuses[504]) / count,
        "shed": (statuses[503] + statuses[429]) / count,
        "statuses": dict(statuses),
        "by_variant": dict(answered),
        "agreement": agreeing.total() / max(1, answered.total()),
        "p95_ms": 1000 * latencies[int(0.95 * len(latencies))] if latencies else None,
        "sent_late_p99_ms": 1000 * sent_late[int(0.99 * count)],
    }


async def settled(url: str) -> None:
    """Until nothing is held and the ladder stands at its top."""
    async with aiohttp.ClientSession() as session:
        while True:
            async with session.get(f"{url}/metrics") as answer:
                page = await answer.text()
            found = dict(line.rsplit(" ", 1) for line in page.splitlines() if line[0] != "#")
            busy = ("rayburst_serve_held", "rayburst_serve_rung")
            if not any(float(found.get(name, 0)) for name in busy):
                return
            await asyncio.sleep(0.25)


def compare(
    urls: dict[str, str], texts: list[str], said: list[int], args: argparse.Namespace
) -> tuple[float, list[dict[str, Any]]]:
    """What fp32 can do, and every run."""
    clients = 2 * args.max_batch
    asyncio.run(closed(urls["shed"], texts, clients=clients, seconds=2))
    able = asyncio.run(closed(urls["shed"], texts, clients=clients, seconds=args.seconds))
    print(f"fp32 answers {able:.1f} requests a second to {clients} clients")
    runs = []
    for number in range(args.rounds):
        for times in args.loads:
            for way in WAYS if number % 2 == 0 else WAYS[::-1]:
                asyncio.run(settled(urls[way]))
                told = asyncio.run(
                    opened(
                        urls[way], texts, said, rate=times * able, seconds=args.seconds,
                        seed=args.seed + number, slo_s=args.slo_ms / 1000,
                    )
                )  # fmt: skip
                runs.append({"way": way, "times": times, "round": number, **told})
                print(f"{way:6} {times:g}x  {told['good_per_s']:6.1f} good/s  {told}")
    return able, runs


def summed(runs: list[dict[str, Any]], times: float, way: str) -> dict[str, Any]:
    """The rounds of one cell: medians, and answers by variant in all."""
    cell = [run for run in runs if run["times"] == times and run["way"] == way]
    names = ("good_per_s", "good", "late", "shed", "agreement")
    variants = sum((Counter(run["by_variant"]) for run in cell), Counter[str]())
    shares = {name: count / variants.total() for name, count in variants.items()}
    return {**{n: statistics.median(run[n] for run in cell) for n in names}, "variants": shares}


def result(able: float, runs: list[dict[str, Any]], args: argparse.Namespace) -> dict[str, Any]:
    table = {f"{times:g}": {way: summed(runs, times, way) for way in WAYS} for times in args.loads}
    gain = {
        times: row["ladder"]["good_per_s"] / row["shed"]["good_per_s"]
        for times, row in table.items()
        if row["shed"]["good_per_s"]
    }
    return {"goodput_vs_shedding": gain, "fp32_per_s": able, "table": table, "runs": runs}


def show(found: dict[str, Any]) -> None:
    table = Table(title=f"times fp32's {found['fp32_per_s']:.1f} requests a second")
    for column in ("load", "way", "good/s", "good", "late", "shed", "agrees", "by variant"):
        table.add_column(column)
    for times, row in found["table"].items():
        for way, cell in row.items():
            shares = [f"{cell[name]:.1%}" for name in ("good", "late", "shed", "agreement")]
            variants = ", ".join(f"{name} {share:.0%}" for name, share in cell["variants"].items())
            table.add_row(times, way, f"{cell['good_per_s']:.1f}", *shares, variants)
    Console(width=120).print(table)
    print(f"goodput over shedding alone, by load: {found['goodput_vs_shedding']}")
    print(f"rungs (agreement): {found['rungs']}; floor {found['args']['agreement']}")


def options_of(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "slo_ms": args.slo_ms,
        "max_batch": args.max_batch,
        "agreement": args.agreement,
        "replicas": {"cpus": 0.1},
    }


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--steps", type=int, default=80)
    p.add_argument("--width", type=int, default=512)
    p.add_argument("--layers", type=int, default=4)
    p.add_argument("--loads", type=float, nargs="+", default=[0.8, 1.2, 1.6, 2.0])
    p.add_argument("--seconds", type=float, default=15.0)
    p.add_argument("--rounds", type=int, default=2)
    p.add_argument("--slo-ms", type=float, default=1000.0)
    p.add_argument("--max-batch", type=int, default=16)
    p.add_argument("--agreement", type=float, default=0.98)
    p.add_argument("--seed", type=int, default=0)
    args = p.parse_args()
    about = bench_models.machine()
    with tempfile.TemporaryDirectory(prefix="rbd-", dir="/tmp") as folder:
        registry = ModelRegistry.open(f"{folder}/store")
        version = publish(registry, args)
        wanted = Wanted(slo_ms=args.slo_ms, agreement=args.agreement, max_batch=args.max_batch)
        agrees = {v.name: v.measured.agreement for v in version.variants if v.measured}
        rungs = {rung.variant: agrees[rung.variant] for rung in ladder(version.variants, wanted)}
        best = dict([next(iter(rungs.items()))])
        print(f"the ladder: {rungs}; shedding alone: {best}")
        texts, said = truth(registry, version)
        port = 8123
        urls = {way: f"http://127.0.0.1:{port}/{way}" for way in WAYS}
        ray.init(
            num_cpus=4, include_dashboard=False, log_to_driver=False,
            object_store_memory=100_000_000, _temp_dir=f"{folder}/ray",
            runtime_env={"env_vars": {"PYTHONPATH": str(Path(__file__).parent)}},
        )  # fmt: skip
        try:
            serve.start(http_options={"host": "127.0.0.1", "port": port})
            place = [f"{folder}/store", version.ref]
            block = len(texts[0])
            plans = {
                way: (options_of(args), [*place, variants, block])
                for way, variants in (("shed", best), ("ladder", rungs))
            }
            start(urls, plans)
            able, runs = compare(urls, texts, said, args)
        finally:
            serve.shutdown()
            ray.shutdown()
    latency = {
        v.name: {str(row.batch): row.median_ms for row in v.measured.latency}
        for v in version.variants
        if v.measured
    }
    found = {
        **result(able, runs, args),
        "rungs": rungs,
        "agreement": agrees,
        "latency_ms": latency,
        "machine": {**about, "load_after": os.getloadavg()[0]},
        "args": vars(args),
    }
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(found, indent=1) + "\n")
    show(found)


if __name__ == "__main__":
    main()
