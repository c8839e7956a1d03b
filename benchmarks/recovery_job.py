"""The training jobs of benchmarks/recovery.py: `python recovery_job.py SYSTEM CONFIG`.

The same model, step length and checkpoint interval. `stock` is Ray Train alone: an elastic
TorchTrainer whose function takes a checkpoint when Ray tells it of a preemption, and every 20
steps. `rayburst` holds the model whole on each worker, `spread` in pieces (FSDP2). Every rank
writes a line for each step it finished.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

STEP_S = 0.25
CHECKPOINT_STEPS = 20
LEAST, MOST = 2, 3
WIDTH = 512


class Noted:
    """A file that all ranks append to."""

    def __init__(self, config: dict[str, Any]) -> None:
        import ray

        self._file = Path(config["log"])
        self._node = ray.get_runtime_context().get_node_id()

    def step(self, step: int, rank: int, world: int) -> None:
        known = {"node": self._node, "pid": os.getpid(), "t": time.time()}
        line = json.dumps({"step": step, "rank": rank, "world": world, **known})
        with self._file.open("a") as file:
            file.write(f"{line}\n")


def learner() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = nn.Sequential(*[nn.Linear(WIDTH, WIDTH) for _ in range(8)])
    return model, torch.optim.AdamW(model.parameters(), lr=1e-3)


def stock(config: dict[str, Any]) -> None:
    import ray.train as rt
    import ray.train.torch

    noted = Noted(config)
    model, optimizer = learner()
    step, saved_for = 0, None
    kept = rt.get_checkpoint()
    if kept is not None:
        with kept.as_directory() as folder:
            state = torch.load(Path(folder) / "state.pt")
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            step = state["step"]
    context = rt.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    wrapped = ray.train.torch.prepare_model(model)
    while step < config["steps"]:
        x = torch.randn(16, WIDTH)
        optimizer.zero_grad()
        (wrapped(x) - x).square().mean().backward()
        optimizer.step()
        step += 1
        time.sleep(STEP_S)
        noted.step(step, rank, world)
        info = rt.get_preemption_info() if step % 4 == 0 else None
        told = None if info is None else str(info.preempted_node_ids)
        if step % CHECKPOINT_STEPS == 0 or (told is not None and told != saved_for):
            saved_for = told
            with tempfile.TemporaryDirectory() as folder:
                checkpoint = None
                if rank == 0:
                    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                    torch.save({**state, "step": step}, Path(folder) / "state.pt")
                    checkpoint = rt.Checkpoint.from_directory(folder)
                rt.report({"step": step}, checkpoint=checkpoint)


def run_stock(config: dict[str, Any]) -> None:
    import ray.train as rt
    from ray.train.torch import TorchTrainer

    TorchTrainer(
        stock,
        train_loop_config=config,
        scaling_config=rt.ScalingConfig(num_workers=(LEAST, MOST)),
        run_config=rt.RunConfig(
            name=config["name"],
            storage_path=config["storage"],
            failure_config=rt.FailureConfig(max_failures=-1),
        ),
    ).fit()


def ours(config: dict[str, Any]) -> None:
    from torch.utils.data import TensorDataset

    from rayburst.train.run import RunOptions, start_run

    noted = Noted(config)
    model, optimizer = learner()
    run = start_run(RunOptions(checkpoint_every_s=STEP_S * CHECKPOINT_STEPS))
    wrapped = run.prepare(model, optimizer, shard=spread if config["system"] == "spread" else None)
    data = TensorDataset(torch.randn(4096, WIDTH))
    sys.path.append(config["tests"])
    from dead_link import fall_silent

    silent = Path(config["storage"]) / f"silent-{run.rank}"
    for (x,) in run.batches(data, global_batch=48, steps=config["steps"]):
        run.backward((wrapped(x) - x).square().mean())
        if run.step():
            noted.step(run.steps_done, run.rank, run.world)
        if silent.exists():
            silent.unlink()
            fall_silent()
        time.sleep(STEP_S)


def spread(model: nn.Sequential) -> None:
    from torch.distributed.fsdp import fully_shard

    for layer in model:
        fully_shard(layer)
    fully_shard(model)


def run_ours(config: dict[str, Any]) -> None:
    from rayburst.train.trainer import ElasticTrainer, Workers

    ElasticTrainer(
        ours,
        config=config,
        run=config["name"],
        storage=config["storage"],
        workers=Workers(least=LEAST, most=MOST),
    ).fit()


if __name__ == "__main__":
    config = {**json.loads(sys.argv[2]), "system": sys.argv[1]}
    (run_stock if sys.argv[1] == "stock" else run_ours)(config)
