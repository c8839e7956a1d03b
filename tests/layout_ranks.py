"""Runs as one rank of a test of layouts: `python layout_ranks.py JSON`.

The JSON is a list of [case, arguments]. RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT come from
`support.run_ranks`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed._tools.mem_tracker import MemTracker
from torch.nn import functional as F

from rayburst.checkpoint import Checkpointer
from rayburst.train.gpt import GPT, GPTConfig
from rayburst.train.parallel import Layout, Parallel, ParallelOptions, Plan
from rayburst.train.parallel.memory import Batch, memory_of
from rayburst.train.parallel.shape import gpt_shape

MODEL = GPTConfig(vocab_size=64, block_size=16, n_layer=4, n_head=4, n_embd=32)
LARGER = GPTConfig(vocab_size=256, block_size=64, n_layer=4, n_head=4, n_embd=128)
GLOBAL_BATCH = 16


def adamw(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    matrices = [p for p in parameters if p.dim() >= 2]
    vectors = [p for p in parameters if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), eps=1e-5)


class Block(nn.Module):
    """Of a user's model."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 3 * width), nn.Linear(3 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.tanh(self.up(self.norm(x))))


class Net(nn.Module):
    """A model that rayburst does not know: it sees a token and the mean of those before it."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(MODEL.vocab_size, 16)
        self.layers = nn.ModuleList(Block(16) for _ in range(4))
        self.norm, self.out = nn.LayerNorm(16), nn.Linear(16, MODEL.vocab_size)

    def read(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.tokens(tokens)
        seen = torch.arange(1, x.shape[1] + 1, device=x.device)[:, None]
        return x + x.cumsum(1) / seen

    def answer(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.norm(x))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.read(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.answer(x)


def mean_loss(output: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(output.flatten(0, 1).float(), targets.flatten())


NET_PLAN = Plan(
    loss=mean_loss,
    blocks="layers",
    embed="read",
    unembed="answer",
    ends={"embed": ("tokens",), "unembed": ("norm", "out")},
    tensor={
        "tokens": "vocabulary",
        "layers.*.up": "column",
        "layers.*.down": "row",
        "out": "logits",
    },
)


def built(
    layout: str, *, seed: int = 0, device: str = "cpu", model: str = "gpt", **options: Any
) -> Parallel:
    """A model in a layout; weights from `seed`, the same on all ranks, or none on "meta"."""
    torch.manual_seed(seed)
    chosen = ParallelOptions(layout=Layout.parse(layout), **options)
    with torch.device(device):
        made = Net() if model == "net" else GPT(MODEL)
    return Parallel(made, chosen, adamw, plan=NET_PLAN if model == "net" else None)


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The global batch of a step: text with a rule, so that there is something to learn."""
    generator = torch.Generator().manual_seed(step)
    start = torch.randint(0, 64, (GLOBAL_BATCH, 1), generator=generator)
    stride = torch.randint(1, 4, (GLOBAL_BATCH, 1), generator=generator)
    text = (start + stride * torch.arange(MODEL.block_size + 1)) % 64
    return text[:, :-1], text[:, 1:]


def mine(parallel: Parallel, step: int) -> dict[str, Any]:
    """What this rank gives to `backward` of a global batch."""
    inputs, targets = (p.tensor_split(parallel.layout.copies)[parallel.copy] for p in batch(step))
    return {"inputs": inputs, "targets": targets, "share": len(inputs) / GLOBAL_BATCH}


def steps(parallel: Parallel, first: int, count: int) -> list[list[float]]:
    """Train on the global batches `first`, ...; loss and gradient norm of each."""
    found = []
    for step in range(first, first + count):
        loss = parallel.backward(**mine(parallel, step))
        norm = parallel.update()
        found.append([loss.item(), norm.item()])
    return found


def curve(uri: str, layouts: dict[str, dict[str, Any]], count: int) -> dict[str, list[list[float]]]:
    """Train each layout from the beginning and save it; the losses by name."""
    found = {}
    for name, spec in layouts.items():
        parallel = built(**spec)
        found[name] = steps(parallel, 0, count)
        found[name].append([parallel.evaluate(**mine(parallel, 99)).item(), 0.0])
        with Checkpointer(f"{uri}/{name}") as checkpoints:
            checkpoints.save(parallel.state(), step=count)
    return found


def resume(
    uri: str, layouts: dict[str, dict[str, Any]], saved: list[str], first: int, count: int
) -> dict[str, list[list[float]]]:
    """Load each saved run into each layout, save it back at once, and go on."""
    found = {}
    for source in saved:
        for name, spec in layouts.items():
            parallel = built(**spec, seed=1)
            state = parallel.state()
            with Checkpointer(f"{uri}/{source}") as checkpoints:
                checkpoints.load(state, step=first)
            parallel.load(state)
            with Checkpointer(f"{uri}/{source}--{name}") as checkpoints:
                checkpoints.save(parallel.state(), step=first)
            found[f"{source}--{name}"] = steps(parallel, first, count)
    return found


def lose(
    uri: str, layouts: dict[str, dict[str, Any]], count: int, rank: int, step: int
) -> dict[str, list[list[float]]]:
    """Train and save each step; `rank` is cut off before it begins `step`."""
    found = {}
    for name, spec in layouts.items():
        parallel = built(**spec)
        found[name] = []
        with Checkpointer(f"{uri}/{name}") as checkpoints:
            for number in range(count):
                if (dist.get_rank(), number) == (rank, step):
                    os.kill(os.getpid(), signal.SIGKILL)
                found[name] += steps(parallel, number, 1)
                checkpoints.save(parallel.state(), step=number + 1)
    return found


def peak(uri: str, layouts: dict[str, dict[str, Any]]) -> dict[str, list[float]]:
    """By name: the most bytes that a rank held in a step, and what the formulas say."""
    shape, rows = gpt_shape(LARGER), 8
    found = {}
    for name, spec in layouts.items():
        chosen = ParallelOptions(**{**spec, "layout": Layout.parse(spec["layout"])})
        parallel = Parallel(GPT(LARGER), chosen, torch.optim.AdamW)
        idx = torch.randint(0, LARGER.vocab_size, (rows, LARGER.block_size))
        parallel.step(idx, idx)
        tracker = MemTracker()
        tracker.track_external(parallel.stage, parallel.optimizer)
        with tracker:
            parallel.step(idx, idx)
        by_kind = tracker.get_tracker_snapshot("peak")[torch.device("cpu")]
        total = by_kind[next(kind for kind in by_kind if str(kind) == "Total")]
        most = torch.tensor(float(total), dtype=torch.float64)
        dist.all_reduce(most, op=dist.ReduceOp.MAX)
        batch = Batch(rows=rows, recompute=chosen.recompute)
        found[name] = [
            most.item(),
            memory_of(shape, chosen.layout, batch, chosen.precision).total_bytes,
        ]
    return found


CASES = {"curve": curve, "resume": resume, "lose": lose, "peak": peak}

if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for what, given in json.loads(sys.argv[1]):
        out = given.pop("out")
        result = CASES[what](**given)
        if dist.get_rank() == 0:
            Path(out).write_text(json.dumps(result))
    dist.barrier()
    dist.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # gloo's threads can outlive the interpreter's shutdown order
