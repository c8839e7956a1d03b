"""Layouts beside plain torch on 2 and 4 processes: throughput, a pipeline's bubble, memory kept.

    make bench-train_layouts                # about ten minutes on two idle cores
    python benchmarks/train_layouts.py --rounds 3 --steps 2
    python benchmarks/train_layouts.py --only tensor=2 bubble       # the rest stays as it was

Each row runs a layout of rayburst.train.parallel and torch's own form of it, written as a torchrun
script would be, in the same processes, turn by turn: two, or four where two dimensions are
combined, which are more than many machines have cores for. Prints one table and writes
benchmarks/out/train_layouts.json: every round, the medians, the ratio plain / rayburst in seconds a
step (1 is equal, above is faster). The targets are 0.95 for that and 0.6 for what bfloat16 keeps of
float32's activations.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.pipelining import PipelineStage, Schedule1F1B
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel

from rayburst.train.gpt import GPT, PRESETS, GPTConfig
from rayburst.train.parallel import Layout, Parallel, ParallelOptions
from rayburst.train.parallel.plan import GPT_PLAN
from rayburst.train.parallel.saved import SavedBytes

OUT = Path(__file__).resolve().parent / "out" / "train_layouts.json"
MODEL = GPTConfig(vocab_size=256, block_size=128, n_layer=4, n_head=4, n_embd=256)
ROWS = 16
PART = 2
SEED = 0
Step = Callable[[], object]


def fresh() -> GPT:
    torch.manual_seed(SEED)
    return GPT(MODEL)


def adamw(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-3)


def batch(rows: int) -> tuple[Tensor, Tensor]:
    text = torch.randint(0, 256, (rows, 129), generator=torch.Generator().manual_seed(SEED))
    return text[:, :-1].contiguous(), text[:, 1:].contiguous()


def ours(layout: Layout, micro_batch: int = 0) -> Step:
    options = ParallelOptions(layout=layout, micro_batch=micro_batch)
    parallel = Parallel(fresh(), options, adamw)
    inputs, targets = batch(ROWS // layout.copies)
    return lambda: parallel.step(inputs, targets).item()


def learn(runs: nn.Module, rows: int, *, clips: bool) -> Step:
    """The loop of a plain script: forward, backward, clip where torch can, step, look at loss."""
    optimizer = adamw(list(runs.parameters()))
    inputs, targets = batch(rows)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        _, loss = runs(inputs, targets)
        loss.backward()
        if clips:
            nn.utils.clip_grad_norm_(runs.parameters(), 1.0)
        optimizer.step()
        loss.item()

    return step


def plain_data() -> Step:
    model = DistributedDataParallel(fresh(), gradient_as_bucket_view=True)
    return learn(model, ROWS // 2, clips=True)


def shard(model: GPT, mesh: DeviceMesh) -> None:
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh, reshard_after_forward=False)


def plain_shard() -> Step:
    model = fresh()
    shard(model, init_device_mesh("cpu", (2,)))
    return learn(model, ROWS // 2, clips=True)


def plain_hybrid() -> Step:
    model = fresh()
    shard(model, init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "shard")))
    return learn(model, ROWS // 4, clips=True)


def split(model: GPT, mesh: DeviceMesh) -> None:
    for block in model.blocks:
        plan = {"attention.heads": ColwiseParallel(), "attention.proj": RowwiseParallel()}
        plan |= {"mlp.0": ColwiseParallel(), "mlp.2": RowwiseParallel()}
        parallelize_module(block, mesh, plan)
    ends = {"token_embedding": RowwiseParallel(input_layouts=Replicate())}
    ends |= {"head": ColwiseParallel(output_layouts=Replicate())}
    parallelize_module(model, mesh, ends)
    model.head.weight = model.token_embedding.weight


def plain_tensor() -> Step:
    """torch's clip_grad_norm_ refuses plain and distributed parameters together: it is left out."""
    model = fresh()
    split(model, init_device_mesh("cpu", (2,)))
    return learn(model, ROWS, clips=False)


def plain_tensor_shard() -> Step:
    """Without clipping, as above: its parameters lie on two meshes."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("shard", "tensor"))
    model = fresh()
    split(model, mesh["tensor"])
    shard(model, mesh["shard"])
    return learn(model, ROWS // 2, clips=False)


class Half(nn.Module):
    """One of two stages of a GPT whose output layer is not tied."""

    def __init__(self, model: GPT, rank: int) -> None:
        super().__init__()
        self.rank = rank
        half = len(model.blocks) // 2
        self.blocks = model.blocks[half * rank : half * (rank + 1)]
        if rank == 0:
            self.tokens, self.places = model.token_embedding, model.position_embedding
        else:
            self.norm, self.head = model.norm, model.head

    def forward(self, x: Tensor) -> Tensor:
        if self.rank == 0:
            x = self.tokens(x) + self.places(torch.arange(x.shape[1]))
        for block in self.blocks:
            x = block(x)
        return x if self.rank == 0 else self.head(self.norm(x))


def plain_pipeline() -> Step:
    """1F1B by hand; it leaves out that the output layer's weight is the embedding's, and clips."""
    return by_hand(init_device_mesh("cpu", (2, 1), mesh_dim_names=("pipeline", "data")))


def plain_pipeline_data() -> Step:
    """The same, its stages in DDP, which torch's pipelines know."""
    return by_hand(init_device_mesh("cpu", (2, 2), mesh_dim_names=("pipeline", "data")))


def by_hand(mesh: DeviceMesh) -> Step:
    rank, copies = mesh["pipeline"].get_local_rank(), mesh["data"].size()
    runs: nn.Module = Half(fresh(), rank)
    optimizer = adamw(list(runs.parameters()))
    if copies > 1:
        group = mesh["data"].get_group()
        runs = DistributedDataParallel(runs, process_group=group, gradient_as_bucket_view=True)
    group = mesh["pipeline"].get_group()
    stage = PipelineStage(runs, rank, 2, torch.device("cpu"), group=group)
    schedule = Schedule1F1B(stage, ROWS // PART // copies, GPT.loss)
    inputs, targets = batch(ROWS // copies)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        if rank == 0:
            schedule.step(inputs, return_outputs=False)
        else:
            schedule.step(target=targets, losses=[], return_outputs=False)
        optimizer.step()

    return step


PAIRS: dict[str, tuple[Callable[[], Step], Callable[[], Step]]] = {
    "data=2": (lambda: ours(Layout(data=2)), plain_data),
    "shard=2": (lambda: ours(Layout(shard=2)), plain_shard),
    "tensor=2": (lambda: ours(Layout(tensor=2)), plain_tensor),
    "pipeline=2": (lambda: ours(Layout(pipeline=2), PART), plain_pipeline),
    "data=2,shard=2": (lambda: ours(Layout(data=2, shard=2)), plain_hybrid),
    "shard=2,tensor=2": (lambda: ours(Layout(shard=2, tensor=2)), plain_tensor_shard),
    "data=2,pipeline=2": (lambda: ours(Layout(data=2, pipeline=2), PART), plain_pipeline_data),
}


PARTS = (*PAIRS, "bubble", "memory")


def world_of(part: str) -> int:
    """How many processes a part of the benchmark takes."""
    return Layout.parse(part).world if part in PAIRS else 2


def timed(step: Step, steps: int) -> float:
    """Seconds a step."""
    dist.barrier()
    began = time.perf_counter()
    for _ in range(steps):
        step()
    dist.barrier()
    return (time.perf_counter() - began) / steps


def throughput(names: list[str], rounds: int, steps: int) -> list[dict[str, Any]]:
    rows = []
    for name in names:
        make_ours, make_plain = PAIRS[name]
        both = {"rayburst": make_ours(), "plain": make_plain()}
        for step in both.values():
            timed(step, 2)
        runs: dict[str, list[float]] = {"rayburst": [], "plain": []}
        for turn in range(rounds):
            for who in sorted(both, reverse=turn % 2 == 1):
                runs[who].append(timed(both[who], steps))
        ratio = median(p / o for p, o in zip(runs["plain"], runs["rayburst"], strict=True))
        rows.append({"layout": name, "seconds_a_step": runs, "ratio": ratio})
        if dist.get_rank() == 0:
            print(f"{time.strftime('%T')} {name}: {ratio:.3f}", file=sys.stderr, flush=True)
    return rows


def bubble(rounds: int, steps: int) -> dict[str, Any]:
    """Time by number of parts is linear; its slope is one part's work, what is above it waits."""
    counts = [2, 4, 8, 16]
    takes = {m: _pipeline_of(m) for m in counts}
    for step in takes.values():
        timed(step, 1)
    runs = {m: [timed(takes[m], steps) for _ in range(rounds)] for m in counts}
    times = {m: median(found) for m, found in runs.items()}
    mean_m, mean_t = sum(counts) / len(counts), sum(times.values()) / len(counts)
    slope = sum((m - mean_m) * (times[m] - mean_t) for m in counts)
    slope /= sum((m - mean_m) ** 2 for m in counts)
    return {
        "stages": 2,
        "seconds_a_step": runs,
        "measured": {m: 1 - m * slope / times[m] for m in counts},
        "theory": {m: 1 / (m + 1) for m in counts},
    }


def _pipeline_of(parts: int) -> Step:
    """Without the optimizer's step, which no part of a batch is part of."""
    options = ParallelOptions(layout=Layout(pipeline=2), micro_batch=PART)
    parallel = Parallel(fresh(), options, adamw)
    inputs, targets = batch(PART * parts)
    return lambda: parallel.backward(inputs, targets)


def kept() -> dict[str, Any]:
    """Bytes that autograd keeps for one forward pass of preset "tiny", 16 samples a process."""
    config = PRESETS["tiny"]
    idx = torch.randint(0, 256, (16, config.block_size))
    found: dict[str, Any] = {}
    for name, layout in (("autocast", Layout(data=2)), ("sharded", Layout(shard=2))):
        for precision in ("fp32", "bf16", "fp16"):
            options = ParallelOptions(layout=layout, precision=precision)  # type: ignore[arg-type]
            parallel = Parallel(GPT(config), options, adamw)
            with SavedBytes(parallel.stage) as saved:
                GPT_PLAN.loss(parallel.stage(idx), idx)
            found[f"{name} {precision}"] = saved.bytes
    worst = max(found[f"{n} bf16"] / found[f"{n} fp32"] for n in ("autocast", "sharded"))
    return {"bytes": found, "bf16_activation_memory": worst}


def rank_main(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    only = [part for part in args.only if world_of(part) == dist.get_world_size()]
    pairs = [name for name in PAIRS if name in only]
    found: dict[str, Any] = {"throughput": throughput(pairs, args.rounds, args.steps)}
    if "memory" in only:
        found["memory"] = kept()
    if "bubble" in only:
        found["bubble"] = bubble(max(3, args.rounds // 2), args.steps)
    if dist.get_rank() == 0:
        args.out.write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)


def on_ranks(args: argparse.Namespace, world: int) -> dict[str, Any]:
    """Run this script as `world` ranks, as torchrun would."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    env |= {"OMP_NUM_THREADS": "1", "WORLD_SIZE": str(world)}
    ranks = [
        subprocess.Popen([sys.executable, *sys.argv, "--rank"], env={**env, "RANK": str(rank)})
        for rank in range(world)
    ]
    try:
        codes = [rank.wait(timeout=3000) for rank in ranks]
    finally:
        for rank in ranks:
            if rank.poll() is None:
                rank.kill()
    if any(codes):
        raise SystemExit(f"ranks ended with {codes}")
    return json.loads(args.out.read_text())


def show(found: dict[str, Any]) -> None:
    print(f"{'layout':<18}{'rayburst ms':>12}{'plain ms':>10}{'ratio':>8}")
    for row in found["throughput"]:
        mine, plain = (1000 * median(row["seconds_a_step"][w]) for w in ("rayburst", "plain"))
        print(f"{row['layout']:<18}{mine:>12.1f}{plain:>10.1f}{row['ratio']:>8.3f}")
    if "bubble" in found:
        print("\nparts   bubble measured   theory")
        for m, share in found["bubble"]["measured"].items():
            print(f"{m:>5}{share:>18.3f}{found['bubble']['theory'][m]:>9.3f}")
    if "memory" not in found:
        return
    print("\nkept for the backward pass, MiB")
    for name, size in found["memory"]["bytes"].items():
        print(f"{name:<16}{size / 2**20:>8.1f}")
    print(f"bf16_activation_memory {found['memory']['bf16_activation_memory']:.3f} (at most 0.6)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--machine", default="quiet", help="what else ran: kept with the report")
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.out.parent.mkdir(exist_ok=True)
    if args.rank:
        rank_main(args)
    before = json.loads(args.out.read_text()) if args.out.exists() else {}
    found: dict[str, Any] = {"throughput": []}
    for world in sorted({world_of(part) for part in args.only}):
        here = on_ranks(args, world)
        found |= here | {"throughput": found["throughput"] + here["throughput"]}
    if set(args.only) != set(PARTS):
        rows = {row["layout"]: row for row in before.get("throughput", ())}
        rows |= {row["layout"]: row for row in found["throughput"]}
        found["throughput"] = [rows[name] for name in PAIRS if name in rows]
        found = {name: before[name] for name in ("bubble", "memory") if name in before} | found
    report = {
        "command": " ".join(["python", "benchmarks/train_layouts.py", *sys.argv[1:]]),
        "seed": SEED,
        "date": time.strftime("%Y-%m-%d"),
        "machine": {
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "else": args.machine,
        },
        "commit": subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=OUT.parent.parent
        ).stdout.strip(),
        "versions": {"python": platform.python_version(), "torch": metadata.version("torch")},
        **found,
    }
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    show(found)
    print(f"written: {args.out}")


if __name__ == "__main__":
    main()
