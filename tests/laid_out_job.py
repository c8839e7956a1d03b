"""A driver that trains a small GPT in a layout; at a declared step one worker waits to be lost.

    python laid_out_job.py '{"layout": "tensor=2", "run": "r", "storage": "...", "least": 2,
                             "most": 4, "steps": 8, "lost": 3, "at": 3, "gate": "/tmp/gate"}'

Worker `lost` waits after step `at`, with a checkpoint on the store: it writes the id of its node
into `gate`, and whoever reads it there ends that node. A group that finds the file passes by.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from rayburst.checkpoint import latest
from rayburst.train.gpt import GPT, GPTConfig
from rayburst.train.parallel import Layout, ParallelOptions
from rayburst.train.run import Run, RunOptions, start_run
from rayburst.train.trainer import ElasticTrainer, Workers


class Counting(torch.utils.data.Dataset[Any]):
    """Text with a rule, so that there is something to learn."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, i: int) -> Any:
        text = (i + (1 + i % 3) * torch.arange(17)) % 64
        return text[:-1], text[1:]


def train(config: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    run = start_run(RunOptions(checkpoint_every_s=1e-3), storage=config.get("folder"))
    gpt = GPT(GPTConfig(vocab_size=64, block_size=16, n_layer=2, n_head=2, n_embd=16))
    model = run.lay_out(
        gpt,
        ParallelOptions(layout=Layout.parse(config["layout"])),
        lambda parameters: torch.optim.AdamW(parameters, lr=1e-2, eps=1e-5),
    )
    batches = run.batches(Counting(), global_batch=16, seed=3, steps=config["steps"])
    for inputs, targets in batches:
        run.report()  # what is not flushed is lost with the process
        if "gate" in config and (run.rank, run.steps_done) == (config["lost"], config["at"]):
            wait_to_be_lost(run, config)
        run.backward(model(inputs, targets))
        run.step()


def wait_to_be_lost(run: Run, config: dict[str, Any]) -> None:
    import ray

    gate, deadline = Path(config["gate"]), time.monotonic() + 120
    if gate.exists():
        return
    while latest(f"{config['storage']}/{config['run']}/checkpoints") is None:
        _pause(deadline)
    part = gate.with_suffix(".part")
    part.write_text(ray.get_runtime_context().get_node_id())
    part.rename(gate)
    while True:
        _pause(deadline)


def _pause(deadline: float) -> None:
    if time.monotonic() > deadline:
        raise TimeoutError("nothing happened at the gate")
    time.sleep(0.1)


def main() -> None:
    config = json.loads(sys.argv[1])
    workers = Workers(least=config["least"], most=config["most"])
    names = {"run": config["run"], "storage": config["storage"]}
    ElasticTrainer(train, config=config, workers=workers, **names).fit()


if __name__ == "__main__":
    main()
