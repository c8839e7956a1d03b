"""A driver whose training function is a run that is rebuilt in place, in exact mode.

    python in_place_job.py '{"storage": "...", "epochs": 60, "least": 1, "most": 3,
                             "faults": [{"rank": 1, "step": 7, "what": "kill"}]}'

Each step pauses until the file `hurry` is in the storage folder: the test touches it once it has
seen what it waits for, so that a slow machine ends no run too early. A fault happens once, at a
rank before its step, or in its measurement before a checkpoint (`"at": "measure"`); it leaves a
file `fault-WHAT` in the storage folder.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from training_ranks import Case, learn

from rayburst.train.inplace.roster import InPlaceOptions
from rayburst.train.resizing import GrowthOptions
from rayburst.train.run import Run, RunOptions, start_run
from rayburst.train.trainer import ElasticOptions, ElasticTrainer, Workers

PAUSE_S = 0.1


class Faults:
    """What is declared in the job's configuration."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._folder = Path(config["storage"])
        self._declared = config.get("faults", [])
        self.run: Run | None = None

    def at(self, where: str) -> None:
        run = self.run
        for fault in self._declared:
            once = self._folder / f"fault-{fault['what']}"
            is_here = run is not None and fault["rank"] == run.rank
            is_now = run is not None and run.steps_done + 1 >= fault["step"]
            if fault.get("at", "step") == where and is_here and is_now and not once.exists():
                once.touch()
                self._happen(fault["what"])

    @staticmethod
    def _happen(what: str) -> None:
        if what == "kill":  # as the kernel does when memory runs out
            os.kill(os.getpid(), signal.SIGKILL)
        elif what == "hang":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif what == "slow":
            time.sleep(3)
        else:
            raise KeyError("the user's own mistake")


def train(config: dict[str, Any]) -> None:
    hurry = Path(config["storage"]) / "hurry"
    faults = Faults(config)

    def turn(samples: list[int]) -> None:
        if not hurry.exists():
            time.sleep(PAUSE_S)
        faults.at("step")

    def measure(is_last: bool) -> dict[str, float]:
        faults.at("measure")
        return {}

    case = Case(epochs=config["epochs"])
    options = RunOptions(**case.options, checkpoint_every_s=config.get("checkpoint_every_s"))
    faults.run = start_run(options, measure=measure)
    learn(faults.run, case, turn)


def main() -> None:
    config = json.loads(sys.argv[1])
    ElasticTrainer(
        train,
        config=config,
        run="r",
        storage=config["storage"],
        workers=Workers(least=config["least"], most=config["most"]),
        options=ElasticOptions(
            recovery="in-place",
            resize_interval_s=2,
            growth=GrowthOptions(start_patience_s=60),
            in_place=InPlaceOptions(**config.get("in_place", {})),
        ),
    ).fit()


if __name__ == "__main__":
    main()
