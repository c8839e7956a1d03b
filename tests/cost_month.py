"""A month of a fleet, made up from a seed: nodes of three markets, jobs on them, a training run."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from rayburst.cost.entries import Owner
from rayburst.cost.facts import Charge, Facts, Hold
from rayburst.fleet.events import NodeEvent

DAY_MS = 86_400_000
START_MS = 1_700_000_000_000
PRICES = {"rack": 0.3517, "spot": 0.9731, "cloud": 3.06, "odd": None}
MARKETS = {"rack": "on-prem", "spot": "spot", "cloud": "on-demand", "odd": "spot"}
READ_USD_PER_GB = 0.0907
TENANTS = ("blue", "green", "")


def month(seed: int, *, days: int = 30, nodes: int = 40) -> Facts:
    """Facts of one month; nodes with an unknown price are among them."""
    rng = random.Random(seed)
    events: list[NodeEvent] = []
    holds: list[Hold] = []
    for number in range(nodes):
        pool = rng.choice(list(PRICES))
        node = f"{pool}-{number:04x}"
        born = START_MS + rng.randrange(days * DAY_MS)
        life = list(_life(rng, node, pool, born, START_MS + days * DAY_MS))
        events += life
        if len(life) > 1:
            holds += _holds(rng, node, round(life[1].t * 1000), round(life[-1].t * 1000))
    run_nodes = [f"spot-run{number}" for number in range(3)]
    for number, node in enumerate(run_nodes):
        born = START_MS + 1000 * number
        events += _life(rng, node, "spot", born, born + DAY_MS, lives_ms=DAY_MS // 2)
    run = _run(rng, run_nodes)
    holds += _holds_of(run)
    return Facts(events=events, holds=holds, runs={"first": run}, charges=_charges(rng, days))


def _life(
    rng: random.Random, node: str, pool: str, born: int, end: int, lives_ms: int | None = None
) -> Iterator[NodeEvent]:
    def event(kind: Any, at_ms: int) -> NodeEvent:
        return NodeEvent(
            t=at_ms / 1000,
            kind=kind,
            node=node,
            pool=pool,
            market=MARKETS[pool],
            price_usd_per_hour=PRICES[pool],
            read_usd_per_gb=READ_USD_PER_GB if pool == "spot" else None,
            why="made up",
        )

    yield event("requested", born)
    at = born + rng.randrange(1, 120_000)
    if lives_ms is None and rng.random() < 0.05:  # it never joined
        yield event("gone", at)
        return
    yield event("up", at)
    is_long = lives_ms is None and rng.random() > 0.9
    lives_ms = lives_ms or int(rng.expovariate(1 / (2 * DAY_MS)))
    if at + lives_ms < end and not is_long:
        yield event("gone", at + lives_ms)


def _holds(rng: random.Random, node: str, up: int, gone: int) -> Iterator[Hold]:
    total = {"CPU": 8.0, "GPU": 1.0}
    at = up
    while at < max(gone, up + DAY_MS) and rng.random() < 0.85:
        at += rng.randrange(0, 4_000_000)
        job = rng.randrange(12)
        yield Hold(
            id=f"{node}-{at}-{job}",
            node=node,
            owner=Owner(job=f"job-{job}", tenant=TENANTS[job % 3], model="m" if job % 2 else ""),
            start_ms=at,
            end_ms=None if rng.random() < 0.1 else at + rng.randrange(1, 20_000_000),
            resources={"CPU": float(rng.randrange(1, 9)), "GPU": float(rng.random() < 0.3)},
            total=total,
        )
        at += rng.randrange(0, 20_000_000)


def _run(rng: random.Random, hosts: list[str]) -> list[dict[str, Any]]:
    """A run over three nodes that is set back twice."""
    records: list[dict[str, Any]] = []
    t, step = START_MS / 1000 + 300, 0
    for attempt in range(3):
        for rank, host in enumerate(hosts):
            common = {"rank": rank, "world": len(hosts)}
            records.append({"t": t, "kind": "start", "step": step, "host": host, **common})
        for i in range(40):
            t += rng.uniform(20, 60)
            for rank in range(len(hosts)):
                common = {"rank": rank, "world": len(hosts), "step": step + i + 1}
                records.append({"t": t, "kind": "step", "loss": 2.0, "duration_s": 19.0, **common})
            read, written = rng.randrange(10**9), rng.randrange(10**9)
            moved = {"received_bytes": read, "sent_bytes": written}
            records.append({"t": t, "kind": "traffic", "rank": i % 3, "world": 3, **moved})
        t += 300
        step += 25 if attempt < 2 else 40
    return records


def _holds_of(run: list[dict[str, Any]]) -> Iterator[Hold]:
    for record in (r for r in run if r["kind"] == "start"):
        start_ms = round(record["t"] * 1000) - 5000
        yield Hold(
            id=f"run-{record['rank']}-{start_ms}",
            node=record["host"],
            owner=Owner(job="trains", tenant="blue", model="first"),
            start_ms=start_ms,
            end_ms=start_ms + 2_000_000,
            resources={"GPU": 1.0},
            total={"CPU": 8.0, "GPU": 1.0},
        )


def _charges(rng: random.Random, days: int) -> list[Charge]:
    return [
        Charge(
            id=f"storage-{day}",
            t_ms=START_MS + day * DAY_MS + 5,
            owner=Owner(job=f"job-{day % 12}"),
            purpose="storage",
            quantity=rng.randrange(10**12),
            unit="byte-seconds",
            nano_usd=None if day % 7 == 0 else rng.randrange(10**10),
        )
        for day in range(days)
    ]
