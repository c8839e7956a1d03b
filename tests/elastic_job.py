"""A driver whose training function is a member of an elastic group; faults by declaration.

    python elastic_job.py '{"log": "...", "storage": "...", "run": "r", "steps": 60, "least": 1,
                            "most": 3, "faults": [{"rank": 1, "step": 9, "what": "exit"}]}'

Every rank computes the same gradient, so that the weights after N steps are the same whatever
happened: a step that was lost or taken twice shows.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from rayburst.train.membership import Change, Membership
from rayburst.train.resizing import GrowthOptions
from rayburst.train.trainer import ElasticOptions, ElasticTrainer, Workers

SIZE = 64


def learner() -> tuple[nn.Linear, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Linear(SIZE, SIZE)
    return model, torch.optim.SGD(model.parameters(), lr=0.01)


def loss_of(model: nn.Module, step: int) -> torch.Tensor:
    noise = torch.Generator().manual_seed(step)
    inputs = torch.randn(8, SIZE, generator=noise)
    return (model(inputs) - inputs).square().mean()


def expected(steps: int) -> float:
    """The sum of the weights after `steps` steps without any group."""
    model, optimizer = learner()
    for step in range(steps):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        optimizer.step()
    return total(model)


def total(model: nn.Module) -> float:
    return float(sum(p.detach().double().abs().sum() for p in model.parameters()))


class Training:
    """One worker's part."""

    def __init__(self, config: dict[str, Any]) -> None:
        import ray

        torch.set_num_threads(1)
        self.config = config
        self.file = Path(config["log"])
        self.node = ray.get_runtime_context().get_node_id()
        self.saved = Path(config["storage"]) / f"{config['run']}.pt"
        self.model, self.optimizer = learner()
        self.membership = Membership.open(leave_margin_s=4)
        self.step: int | None = None
        self.wrapped: nn.Module = self.model

    def log(self, kind: str, **fields: Any) -> None:
        place = self.membership.place
        known = {"rank": place.rank, "world": place.world, "node": self.node, "pid": os.getpid()}
        with self.file.open("a") as file:
            file.write(json.dumps({"kind": kind, "t": time.time(), **known, **fields}) + "\n")

    def meet(self) -> bool:
        """Take a new place and its state; False when this rank is to return."""
        while True:
            change = self.membership.change(self.step)
            if change.place is None:
                self.log("left", step=self.step)
                return False
            self.log(
                "change",
                generation=change.generation,
                before=self.step,
                leaves=change.leaves,
                reason=change.reason,
            )
            with self.membership.attempt() as attempt:
                self.fault("sync", change.generation)
                self.take_state(change)
                is_group = dist.is_initialized()
                self.wrapped = (
                    nn.parallel.DistributedDataParallel(self.model, init_sync=False)
                    if is_group
                    else self.model
                )
            if not attempt.broken:
                if change.leaves:
                    self.leave(change.reason)
                return True

    def take_state(self, change: Change) -> None:
        if change.restores:
            self.restore()
        elif change.source is not None:
            count = torch.tensor([-1 if self.step is None else self.step])
            self.step = None  # until all of it is here
            for tensor in [count, *self.model.state_dict().values()]:
                dist.broadcast(tensor, change.source)
            self.step = int(count)

    def restore(self) -> None:
        self.step = 0
        if self.saved.exists():
            state = torch.load(self.saved)
            self.model.load_state_dict(state["model"])
            self.step = state["step"]
        self.log("start", step=self.step)

    def save(self) -> None:
        if self.membership.place.rank == 0:
            part = self.saved.with_suffix(".part")
            torch.save({"model": self.model.state_dict(), "step": self.step}, part)
            part.rename(self.saved)
        self.log("saved", step=self.step)

    def leave(self, reason: str) -> None:
        self.save()
        if dist.is_initialized():
            dist.barrier()  # nobody ends before rank 0 has saved
        self.membership.leave(reason)

    def run(self) -> None:
        if not self.meet():
            return
        while self.step is not None and self.step < self.config["steps"]:
            with self.membership.attempt() as attempt:
                self.fault("step", self.step)
                self.membership.begin()
                self.optimizer.zero_grad()
                loss_of(self.wrapped, self.step).backward()
                self.membership.confirm()
                self.optimizer.step()
                self.step += 1
                self.log("step", step=self.step)
                time.sleep(self.config.get("pause_s", 0.1))
                verdict = self.membership.end()
            if attempt.broken:
                self.log("broken", step=self.step, error=attempt.broken)
            if attempt.broken or verdict.change:
                if not self.meet():
                    return
            elif verdict.leave:
                self.leave(self.membership.reason)
        self.save()
        self.log("end", step=self.step, total=total(self.model))

    def fault(self, at: str, count: int) -> None:
        for fault in self.config.get("faults", []):
            if fault.get("at", "step") == at and fault["count"] == count:
                once = Path(self.config["storage"]) / f"fault-{fault['what']}-{at}-{count}"
                if fault["rank"] == self.membership.place.rank and not once.exists():
                    once.touch()
                    self.log("fault", what=fault["what"])
                    FAULTS[fault["what"]]()


def end_process() -> None:
    os._exit(1)


def end_rendezvous() -> None:
    import ray

    from rayburst.train.inplace.introduction import introduction

    given = introduction()
    if given is not None:
        ray.kill(given.rendezvous, no_restart=False)


def end_controller() -> None:
    import ray
    from ray.train.v2._internal.execution.context import get_train_context

    ray.kill(get_train_context().controller_actor)


FAULTS: dict[str, Callable[[], None]] = {
    "exit": end_process,
    "rendezvous": end_rendezvous,
    "controller": end_controller,
}


def train(config: dict[str, Any]) -> None:
    Training(config).run()


def main() -> None:
    config = json.loads(sys.argv[1])
    options = ElasticOptions(
        recovery=config.get("recovery", "in-place"),
        resize_interval_s=2,
        growth=GrowthOptions(start_patience_s=config.get("patience_s", 30)),
    )
    ElasticTrainer(
        train,
        config=config,
        run=config["run"],
        storage=config["storage"],
        workers=Workers(least=config["least"], most=config["most"]),
        options=options,
    ).fit()


if __name__ == "__main__":
    main()
