"""One process of benchmarks/train.py, started by torchrun: trains, and times its own steps.

    torchrun --nproc-per-node 2 benchmarks/train_rank.py MODE PRESET STEPS BATCH OUT

MODE is `ddp` (a plain loop with DistributedDataParallel and a DataLoader over text in memory),
`fast` or `exact` (a run that streams the same text from its token cache, as the main job does). All
three train the same model with the same optimizer. Rank 0 writes {"steps_per_s", "wait_share"} to
OUT. Checkpoints are left out of all of them.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from rayburst.checkpoint.store import ObjectStore
from rayburst.train.corpus import keep_text, open_corpus
from rayburst.train.gpt import GPT, PRESETS
from rayburst.train.learner import CLIP_NORM, loss_of, make_optimizer
from rayburst.train.run import RunOptions, start_run
from rayburst.train.runlog import read_folder
from rayburst.train.sources import find_sources
from rayburst.train.text import load_text, windows

WARM_UP = 10


class PlainWindows(Dataset[Any]):
    """The same windows for a DataLoader, fetched a batch at a time."""

    def __init__(self, data: Any, block: int) -> None:
        self.data, self.block = data, block

    def __len__(self) -> int:
        return int((self.data.size - 1) // self.block)

    def __getitems__(self, indices: list[int]) -> Any:
        import numpy as np

        return windows(self.data, np.array(indices) * self.block, self.block)


def plain(model: nn.Module, data: Any, block: int, steps: int, batch: int, lr: float) -> float:
    optimizer, schedule = make_optimizer(model, lr=lr, steps=steps)
    world = dist.get_world_size()
    wrapped = DistributedDataParallel(model, gradient_as_bucket_view=True) if world > 1 else model
    samples = PlainWindows(data, block)
    loader = DataLoader(
        samples, batch // world, sampler=DistributedSampler(samples), collate_fn=lambda b: b
    )
    began_s = 0.0
    for done, (inputs, targets) in enumerate(loader):
        if done == WARM_UP:
            began_s = time.perf_counter()
        if done == steps:
            break
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(wrapped, inputs, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        schedule.step()
        loss.item()  # as a loop that logs its loss does
    return (steps - WARM_UP) / (time.perf_counter() - began_s)


def elastic(mode: Any, model: nn.Module, block: int, steps: int, batch: int, lr: float,
            folder: str) -> tuple[float, float]:  # fmt: skip
    run = start_run(RunOptions(mode=mode, checkpoint_every_s=1e9), storage=folder)
    optimizer, schedule = make_optimizer(model, lr=lr, steps=steps)
    wrapped = run.prepare(model, optimizer, schedule, clip_norm=CLIP_NORM)
    samples = open_corpus(ObjectStore.open(folder), block_size=block, seed=0).samples
    began_s = ended_s = 0.0
    for inputs, targets in run.batches(samples, global_batch=batch, seed=0, steps=steps):
        if run.steps_done == WARM_UP and not began_s:
            began_s = time.perf_counter()
        run.backward(loss_of(wrapped, inputs, targets))
        run.step()
        ended_s = time.perf_counter()
    if dist.get_rank():
        return 0.0, 0.0
    log = [r for r in read_folder(ObjectStore.open(folder)) if r["kind"] == "step"]
    late = [r for r in log if r["step"] > WARM_UP]
    waited = sum(r["wait_s"] for r in late) / sum(r["duration_s"] for r in late)
    return (steps - WARM_UP) / (ended_s - began_s), waited


def main() -> None:
    mode, preset, steps, batch, out = sys.argv[1:]
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    shape = PRESETS[preset]
    model = GPT(shape)
    wait_share = None
    if mode == "ddp":
        rate = plain(model, load_text().train, shape.block_size, int(steps), int(batch), 4e-3)
    else:
        box = [tempfile.mkdtemp() if dist.get_rank() == 0 else ""]
        if dist.get_rank() == 0:
            keep_text(ObjectStore.open(box[0]), find_sources())
        dist.broadcast_object_list(box)
        rate, wait_share = elastic(
            mode, model, shape.block_size, int(steps), int(batch), 4e-3, box[0]
        )
    if dist.get_rank() == 0:
        Path(out).write_text(json.dumps({"steps_per_s": rate, "wait_share": wait_share}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
