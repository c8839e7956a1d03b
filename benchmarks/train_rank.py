"""One process of benchmarks/train.py, started by torchrun: trains in three ways, turn by turn.

    torchrun --nproc-per-node 2 benchmarks/train_rank.py PRESET ROUNDS STEPS BATCH OUT

`ddp` is a plain loop with DistributedDataParallel and a DataLoader over text in memory, `fast` and
`exact` are runs that stream the same text from a token cache, as the main job does. All train the
same model with the same optimizer, STEPS steps in each turn, in an order that rotates; then `fast`
trains on alone, to see how long it waits for data. Checkpoints are left out. Rank 0 writes
{"rounds": [{way: steps a second}], "wait_share"} to OUT.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from rayburst.checkpoint.store import ObjectStore
from rayburst.train.corpus import keep_text, open_corpus
from rayburst.train.gpt import GPT, PRESETS, GPTConfig
from rayburst.train.learner import CLIP_NORM, loss_of, make_optimizer
from rayburst.train.run import RunOptions, start_run
from rayburst.train.runlog import read_folder
from rayburst.train.sources import find_sources
from rayburst.train.text import load_text, windows

WARM_UP = 5
ALONE = 6  # turns
LR = 4e-3
Step = Callable[[], object]


class PlainWindows(Dataset[Any]):
    """The same windows for a DataLoader, fetched a batch at a time."""

    def __init__(self, data: Any, block: int) -> None:
        self.data, self.block = data, block

    def __len__(self) -> int:
        return int((self.data.size - 1) // self.block)

    def __getitems__(self, indices: list[int]) -> Any:
        import numpy as np

        return windows(self.data, np.array(indices) * self.block, self.block)


def fresh(shape: GPTConfig) -> GPT:
    torch.manual_seed(0)
    return GPT(shape)


def plain(shape: GPTConfig, steps: int, batch: int) -> Step:
    """A loop as one writes it for torchrun, that logs its loss."""
    model = fresh(shape)
    optimizer, schedule = make_optimizer(model, lr=LR, steps=steps)
    world = dist.get_world_size()
    wrapped = DistributedDataParallel(model, gradient_as_bucket_view=True) if world > 1 else model
    samples = PlainWindows(load_text().train, shape.block_size)
    loader: Iterator[Any] = iter(
        DataLoader(
            samples, batch // world, sampler=DistributedSampler(samples), collate_fn=lambda b: b
        )
    )

    def step() -> None:
        inputs, targets = next(loader)
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(wrapped, inputs, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        schedule.step()
        loss.item()

    return step


def elastic(mode: Any, shape: GPTConfig, steps: int, batch: int, folder: str) -> Step:
    """A run, one step at a time."""
    run = start_run(RunOptions(mode=mode, checkpoint_every_s=1e9), storage=f"{folder}/{mode}")
    model = fresh(shape)
    optimizer, schedule = make_optimizer(model, lr=LR, steps=steps)
    wrapped = run.prepare(model, optimizer, schedule, clip_norm=CLIP_NORM)
    samples = open_corpus(ObjectStore.open(folder), block_size=shape.block_size, seed=0).samples
    batches = run.batches(samples, global_batch=batch, seed=0, steps=steps)

    def step() -> None:
        is_done = False
        while not is_done:  # in exact mode a turn of the loop is one shard
            inputs, targets = next(batches)
            run.backward(loss_of(wrapped, inputs, targets))
            is_done = run.step()

    return step


def timed(step: Step, steps: int, *, is_exact: bool) -> float:
    """Steps a second."""
    torch.set_deterministic_debug_mode("error" if is_exact else "default")  # the process's
    dist.barrier()
    began_s = time.perf_counter()
    for _ in range(steps):
        step()
    dist.barrier()
    return steps / (time.perf_counter() - began_s)


def main() -> None:
    preset, *numbers, out = sys.argv[1:]
    rounds, steps, batch = map(int, numbers)
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    shape = PRESETS[preset]
    box = [tempfile.mkdtemp() if dist.get_rank() == 0 else ""]
    if dist.get_rank() == 0:
        keep_text(ObjectStore.open(box[0]), find_sources())
    dist.broadcast_object_list(box)
    total = 10 * (WARM_UP + (rounds + ALONE) * steps)  # none comes to its end
    ways: dict[str, Step] = {"ddp": plain(shape, total, batch)}
    ways |= {mode: elastic(mode, shape, total, batch, box[0]) for mode in ("fast", "exact")}
    for way, step in ways.items():
        timed(step, WARM_UP, is_exact=way == "exact")
    found = []
    for number in range(rounds):
        names = [*ways][number % len(ways) :] + [*ways][: number % len(ways)]
        found.append({n: timed(ways[n], steps, is_exact=n == "exact") for n in names})
    alone_s = time.time()
    timed(ways["fast"], ALONE * steps, is_exact=False)
    dist.barrier()
    if dist.get_rank() == 0:
        time.sleep(2)  # the run log writes each second
        log = read_folder(ObjectStore.open(f"{box[0]}/fast"))
        mine = [r for r in log if r["kind"] == "step" and r["t"] > alone_s and r["rank"] == 0]
        waited = sum(r["wait_s"] for r in mine) / sum(r["duration_s"] for r in mine)
        Path(out).write_text(json.dumps({"rounds": found, "wait_share": waited}))
    dist.barrier()


if __name__ == "__main__":
    main()
