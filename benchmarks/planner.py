"""One decision of the planner on fleets of 100 to 10,000 nodes, beside Ray v2's own scheduler.

    make bench-planner                             # some minutes, most of it Ray's scheduler
    python benchmarks/planner.py --sizes 100,1000  # smaller
    python benchmarks/planner.py --no-ray          # the planner alone

A fleet of N nodes has N/50 pools in zones of four (on-prem, spot, spot, on-demand) and N/10 jobs:
most hold ten nodes, a tenth moves or grows, a fifth waits; two in five have a deadline, some on
on-demand, for which the deadline policy is asked each time. N/10 pending requests of plain Ray work
in twenty shapes stand beside them. Tables of the policy are solved before the clock starts: an
agent keeps them. Ray's scheduler gets the same nodes, node types and requests, and the waiting
jobs' bundles as requests; it decides no deadlines, budgets or moves. It is ended after
`--ray-limit` seconds, and the row then says so.

Writes benchmarks/out/planner.json: every run, medians, and the exponent of growth.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import platform
import random
import signal
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rayburst.fleet.deadline import DeadlinePolicy
from rayburst.fleet.jobs import JobView, Terms
from rayburst.fleet.packing import Request
from rayburst.fleet.planner import plan_fleet
from rayburst.fleet.spec import Market
from rayburst.fleet.view import (
    ActionKind,
    Demand,
    FleetView,
    NodeState,
    NodeView,
    PoolView,
)
from rayburst.train.grants import Ask, Grant

ROOT = Path(__file__).resolve().parents[1]
NOW = 1_000_000.0
HOUR = 3600.0
MARKETS = (Market.ON_PREM, Market.SPOT, Market.SPOT, Market.ON_DEMAND)
PRICES = {Market.ON_PREM: 0.35, Market.SPOT: 0.97, Market.ON_DEMAND: 3.06}
NODE = {"CPU": 8.0, "memory": 32e9}
WORKER = {"CPU": 8.0}
GANG = 10


def fleet(nodes: int, seed: int) -> tuple[FleetView, Demand]:
    """A fleet of so many nodes and what is asked of it; same seed, same fleet."""
    rng = random.Random(seed)
    pools = [_pool(number) for number in range(max(nodes // 50, 4))]
    per_pool = nodes // len(pools)
    views: list[NodeView] = []
    jobs: list[JobView] = []
    free: dict[str, list[str]] = {}
    for pool in pools:
        hosts = [f"{pool.name}-{i:04d}" for i in range(per_pool)]
        held = hosts[: int(per_pool * 0.8) // GANG * GANG]
        for begin in range(0, len(held), GANG):
            jobs.append(_running(f"job-{len(jobs)}", pool, tuple(held[begin : begin + GANG]), rng))
        rest = hosts[len(held) :]
        free[pool.name] = rest[len(rest) // 2 :]
        busy = set(hosts) - set(free[pool.name])
        views += [_node(host, pool, busy=host in busy, rng=rng) for host in hosts]
    while len(jobs) < nodes // 10:
        jobs.append(_waiting(f"job-{len(jobs)}", rng))
    requests = [
        Request(resources={"CPU": float(1 + i % 4), "memory": 1e9 * (1 + i % 5)})
        for i in range(nodes // 10)
    ]
    view = FleetView(now=NOW, idle_timeout_s=60.0, pools=pools, nodes=views)
    return view, Demand(requests=requests, jobs=jobs)


def _pool(number: int) -> PoolView:
    market = MARKETS[number % len(MARKETS)]
    name = f"{market}-{number:03d}"
    return PoolView(
        name=name,
        market=market,
        resources=dict(NODE),
        labels={"rayburst.io/market": str(market), "rayburst.io/pool": name},
        price_usd_per_hour=PRICES[market],
        min_hosts=0,
        max_hosts=60,
        domain=f"zone-{number // len(MARKETS)}",
    )


def _node(host: str, pool: PoolView, *, busy: bool, rng: random.Random) -> NodeView:
    return NodeView(
        host=host,
        pool=pool.name,
        state=NodeState.RUNNING,
        total=NODE,
        available={"CPU": 0.0, "memory": 32e9} if busy else NODE,
        idle_s=0.0 if busy else rng.uniform(0, 50),
        age_s=rng.uniform(0, HOUR),
    )


def _running(name: str, pool: PoolView, hosts: tuple[str, ...], rng: random.Random) -> JobView:
    most = GANG + (2 if rng.random() < 0.1 else 0)
    has_deadline = pool.market is Market.ON_DEMAND or rng.random() < 0.25
    ask = _ask(name, least=2, most=most, hosts=hosts, hours=rng.choice([4, 8, 16]))
    spare_h = rng.uniform(0.1, 1.0) if pool.market is Market.ON_DEMAND else rng.uniform(2, 8)
    deadline = NOW + ask.steps_left + spare_h * HOUR if has_deadline and ask.steps_left else None
    grant = Grant(hosts=hosts, pools={pool.name: len(hosts)})
    return JobView(
        id=name,
        submitted_at=NOW - HOUR * rng.choice([1, 2]),
        terms=Terms(deadline=deadline, tenant=f"tenant-{rng.randrange(20)}"),
        ask=ask,
        grant=grant,
    )


def _waiting(name: str, rng: random.Random) -> JobView:
    ask = _ask(name, least=rng.choice([4, 8, 40]), most=40, hosts=(), hours=8)
    return JobView(
        id=name,
        submitted_at=NOW - 60,
        terms=Terms(tenant=f"tenant-{rng.randrange(20)}", priority=rng.randrange(2)),
        ask=ask,
    )


def _ask(name: str, *, least: int, most: int, hosts: tuple[str, ...], hours: int) -> Ask:
    return Ask(
        t=NOW,
        run=name,
        least=least,
        most=most,
        resources=WORKER,
        hosts=hosts,
        steps_left=hours * 3600,
        speeds={GANG: 1.0},
        changeover_s=30.0,
    )


def ray_scheduler(view: FleetView, demand: Demand) -> Callable[[], Any]:
    """Ray v2's ResourceDemandScheduler on the same state, as a call; Ray's private modules."""
    from ray.autoscaler.v2.instance_manager.config import NodeTypeConfig
    from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
    from ray.autoscaler.v2.schema import AutoscalerInstance
    from ray.autoscaler.v2.utils import ResourceRequestUtil
    from ray.core.generated.autoscaler_pb2 import NodeState as RayNode
    from ray.core.generated.autoscaler_pb2 import NodeStatus
    from ray.core.generated.instance_manager_pb2 import Instance, NodeKind

    types = {
        pool.name: NodeTypeConfig(
            name=pool.name,
            min_worker_nodes=0,
            max_worker_nodes=pool.max_hosts,
            resources=dict(pool.resources),
            labels=dict(pool.labels),
        )
        for pool in view.pools
    }
    instances = [
        AutoscalerInstance(
            cloud_instance_id=node.host,
            ray_node=RayNode(
                node_id=node.host.encode(),
                ray_node_type_name=node.pool,
                available_resources=dict(node.available),
                total_resources=dict(node.total),
                status=NodeStatus.IDLE if node.idle_s else NodeStatus.RUNNING,
                idle_duration_ms=int(node.idle_s * 1000),
            ),
            im_instance=Instance(
                instance_id=node.host,
                instance_type=node.pool,
                status=Instance.RAY_RUNNING,
                node_kind=NodeKind.WORKER,
            ),
        )
        for node in view.nodes
    ]
    bundles = [dict(request.resources) for request in demand.requests]
    for job in demand.jobs:
        if job.ask and not job.ask.hosts:
            bundles += [dict(WORKER)] * job.ask.least
    requests = [ResourceRequestUtil.make(bundle) for bundle in bundles]
    request = SchedulingRequest(
        disable_launch_config_check=True,
        node_type_configs=types,
        max_num_nodes=sum(pool.max_hosts for pool in view.pools),
        resource_requests=ResourceRequestUtil.group_by_count(requests),
        current_instances=instances,
    )
    return lambda: ResourceDemandScheduler(None).schedule(request)


def timed(call: Callable[[], Any], runs: int) -> list[float]:
    """Milliseconds of each run."""
    found = []
    for _ in range(runs):
        gc.collect()
        began = time.perf_counter()
        call()
        found.append((time.perf_counter() - began) * 1000)
    return found


def measure(nodes: int, runs: int, seed: int, *, ray_limit_s: int) -> dict[str, Any]:
    """Both on one fleet; a limit of 0 leaves Ray out."""
    view, demand = fleet(nodes, seed)
    policy = DeadlinePolicy()
    plan = plan_fleet(view, demand, policy=policy)  # solves the tables
    ours = timed(lambda: plan_fleet(view, demand, policy=policy), runs)
    found = {
        "nodes": nodes,
        "pools": len(view.pools),
        "jobs": len(demand.jobs),
        "requests": len(demand.requests),
        "planner_ms": ours,
        "planner_median_ms": statistics.median(ours),
        "actions": {str(kind): sum(a.kind is kind for a in plan.actions) for kind in ActionKind},
    }
    if ray_limit_s:
        found |= measure_ray(view, demand, ray_limit_s)
    return found


class RayTooSlow(Exception):
    """Ray's scheduler was ended."""


def measure_ray(view: FleetView, demand: Demand, limit_s: int) -> dict[str, Any]:
    """Three runs of Ray's scheduler, fewer where they take too long."""

    def end(*_: object) -> None:
        raise RayTooSlow

    signal.signal(signal.SIGALRM, end)
    call, found = ray_scheduler(view, demand), []
    signal.alarm(limit_s)
    try:
        for _ in range(3):
            found += timed(call, 1)
    except RayTooSlow:
        pass
    finally:
        signal.alarm(0)
    if not found:
        return {"ray_v2_ms": [], "ray_v2_over_ms": limit_s * 1000}
    return {"ray_v2_ms": found, "ray_v2_median_ms": statistics.median(found)}


def growth(rows: list[dict[str, Any]]) -> float:
    """Slope of log(time) over log(n log n), from the smallest to the largest size."""
    first, last = rows[0], rows[-1]
    work = [row["nodes"] * math.log(row["nodes"]) for row in (first, last)]
    times = [row["planner_median_ms"] for row in (first, last)]
    return math.log(times[1] / times[0]) / math.log(work[1] / work[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="100,300,1000,3000,10000")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-ray", action="store_true")
    parser.add_argument("--ray-limit", type=int, default=120, help="seconds for Ray at one size")
    args = parser.parse_args()
    rows = []
    print(f"{'nodes':>7} {'pools':>6} {'jobs':>6}  {'planner ms':>10}  {'Ray v2 ms':>10}  ratio")
    for size in map(int, args.sizes.split(",")):
        row = measure(size, args.runs, args.seed, ray_limit_s=0 if args.no_ray else args.ray_limit)
        rows.append(row)
        ray_ms = row.get("ray_v2_median_ms")
        told = f"{ray_ms:>10.0f}  {ray_ms / row['planner_median_ms']:5.0f}" if ray_ms else ""
        if over_ms := row.get("ray_v2_over_ms"):
            told = f"{'> ' + str(over_ms):>10}  {over_ms / row['planner_median_ms']:5.0f}+"
        print(
            f"{row['nodes']:>7} {row['pools']:>6} {row['jobs']:>6}  "
            f"{row['planner_median_ms']:>10.1f}  {told}",
            flush=True,
        )
    result: dict[str, Any] = {
        "command": " ".join(["python", "benchmarks/planner.py", *sys.argv[1:]]),
        "seed": args.seed,
        "machine": {"cpus": os.cpu_count(), "arch": platform.machine()},
        "python": platform.python_version(),
        "rows": rows,
    }
    if len(rows) > 1:
        result["growth_over_n_log_n"] = growth(rows)
        print(f"time grows as (n log n)^{result['growth_over_n_log_n']:.2f}")
    if rows[-1]["nodes"] == 10_000:
        result["decision_ms_10k_nodes"] = rows[-1]["planner_median_ms"]
    out = ROOT / "benchmarks" / "out" / "planner.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"wrote {out.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
