"""A driver whose training function is a run that is rebuilt in place, in exact mode.

    python in_place_job.py '{"storage": "...", "epochs": 60, "least": 1, "most": 3,
                             "faults": [{"rank": 1, "step": 7, "what": "kill"}]}'

Each step pauses until the file `hurry` is in the storage folder: the test touches it once it has
seen what it waits for, so that a slow machine ends no run too early. A fault happens once, at a
rank before its step, or in its measurement before a checkpoint (`"at": "measure"`); it leaves a
file `fault-WHAT` there. `node` in place of `rank` names Ray's node. `poison`: a sample whose loss
is not a number. `spread`: with FSDP2, in fast mode. `folder`: where such files are, if not in the
storage. `env`: names of variables that workers get from the driver. `asks`: the loop has a
collective of its own. `recovery`: another tier; `growth`, `collective_timeout_s`: what a group that
restarts is given. `waits_after`: in the group that starts once this
fault has happened, rank 1 waits at the start of its function for the file `go`, and a file `waits`
has the id of its node.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
import torch.distributed as dist
from dead_link import fall_silent
from training_ranks import Case, learn

from rayburst.train.inplace.roster import InPlaceOptions
from rayburst.train.resizing import GrowthOptions
from rayburst.train.run import Run, RunOptions, start_run
from rayburst.train.trainer import ElasticOptions, ElasticTrainer, Workers

PAUSE_S = 0.1


def end_controller() -> None:
    from ray.train.v2._internal.execution.context import get_train_context

    ray.kill(get_train_context().controller_actor)


def end_rendezvous() -> None:
    from rayburst.train.inplace.introduction import introduction

    given = introduction()
    assert given is not None
    ray.kill(given.rendezvous)  # for good: Ray does not start it again


END = {"controller": end_controller, "rendezvous": end_rendezvous}


def folder_of(config: dict[str, Any]) -> Path:
    return Path(config.get("folder", config["storage"]))


def case_of(config: dict[str, Any]) -> Case:
    case = Case(epochs=config["epochs"], poison=config.get("poison"))
    if config.get("spread"):
        case = replace(case, options={"mode": "fast"}, optimizer="sgd", dropout=0.0, spread=True)
    return case


class Faults:
    """What is declared in the job's configuration."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._folder = folder_of(config)
        self._declared = config.get("faults", [])
        self.run: Run | None = None

    def at(self, where: str) -> None:
        run = self.run
        for fault in self._declared:
            once = self._folder / f"fault-{fault['what']}"
            is_here = run is not None and self._is_here(run, fault)
            is_now = run is not None and run.steps_done + 1 >= fault["step"]
            if fault.get("at", "step") == where and is_here and is_now and not once.exists():
                once.touch()
                self._happen(fault["what"])

    @staticmethod
    def _is_here(run: Run, fault: dict[str, Any]) -> bool:
        if "node" in fault:
            return bool(fault["node"] == ray.get_runtime_context().get_node_id())
        return bool(fault["rank"] == run.rank)

    @staticmethod
    def _happen(what: str) -> None:
        if what == "kill":  # as the kernel does when memory runs out
            os.kill(os.getpid(), signal.SIGKILL)
        elif what == "hang":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif what == "unplug":
            fall_silent()
        elif what == "slow":
            time.sleep(3)
        elif what == "memory":  # until somebody ends this process
            held = []
            while len(held) < 64:
                held.append(b"x" * 2**27)
                time.sleep(0.1)
            time.sleep(60)
        elif what in END:
            END[what]()
        else:
            raise KeyError("the user's own mistake")


def wait_at_the_start(config: dict[str, Any]) -> None:
    """For the test to act while the workers of a restart come up."""
    folder = folder_of(config)
    is_after = (folder / f"fault-{config.get('waits_after')}").exists()
    if not is_after or ray.train.get_context().get_world_rank() != 1:
        return
    waits, go = folder / "waits", folder / "go"
    if waits.exists():
        return
    part = waits.with_suffix(".part")
    part.write_text(ray.get_runtime_context().get_node_id())
    part.rename(waits)
    while not go.exists():
        time.sleep(0.05)


def train(config: dict[str, Any]) -> None:
    wait_at_the_start(config)
    hurry = folder_of(config) / "hurry"
    faults = Faults(config)

    def turn(samples: list[int]) -> None:
        if not hurry.exists():
            time.sleep(PAUSE_S)
        if config.get("asks") and faults.run is not None and faults.run.world > 1:
            dist.all_reduce(torch.zeros(1))
        faults.at("step")

    def measure(is_last: bool) -> dict[str, float]:
        faults.at("measure")
        return {}

    case = case_of(config)
    options = RunOptions(
        **case.options,
        checkpoint_every_s=config.get("checkpoint_every_s"),
        on_nonfinite=config.get("on_nonfinite", "stop"),
    )
    faults.run = start_run(options, measure=measure)
    learn(faults.run, case, turn)


def main() -> None:
    config = json.loads(sys.argv[1])
    if "env" in config:  # else that of the nodes
        ray.init(runtime_env={"env_vars": {name: os.environ[name] for name in config["env"]}})
    trainer = ElasticTrainer(
        train,
        config=config,
        run="r",
        storage=config["storage"],
        workers=Workers(least=config["least"], most=config["most"]),
        options=ElasticOptions(
            recovery=config.get("recovery", "in-place"),
            resize_interval_s=2,
            growth=GrowthOptions(**config.get("growth", {"start_patience_s": 60})),
            collective_timeout_s=config.get("collective_timeout_s", 300.0),
            in_place=InPlaceOptions(**config.get("in_place", {})),
        ),
    )
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        print(f"FAILED {error} END", flush=True)  # noqa: T201
        raise


if __name__ == "__main__":
    main()
