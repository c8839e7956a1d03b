"""A driver whose training function is a run that is rebuilt in place, in exact mode.

    python in_place_job.py '{"storage": "...", "epochs": 60, "least": 1, "most": 3}'

Each step pauses until the file `hurry` is in the storage folder: the test touches it once it has
seen what it waits for, so that a slow machine ends no run too early.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from training_ranks import Case, learn

from rayburst.train.resizing import GrowthOptions
from rayburst.train.run import RunOptions, start_run
from rayburst.train.trainer import ElasticOptions, ElasticTrainer, Workers

PAUSE_S = 0.1


def train(config: dict[str, Any]) -> None:
    hurry = Path(config["storage"]) / "hurry"

    def turn(samples: list[int]) -> None:
        if not hurry.exists():
            time.sleep(PAUSE_S)

    case = Case(epochs=config["epochs"])
    learn(start_run(RunOptions(**case.options)), case, turn)


def main() -> None:
    config = json.loads(sys.argv[1])
    ElasticTrainer(
        train,
        config=config,
        run="r",
        storage=config["storage"],
        workers=Workers(least=config["least"], most=config["most"]),
        options=ElasticOptions(
            recovery="in-place", resize_interval_s=2, growth=GrowthOptions(start_patience_s=60)
        ),
    ).fit()


if __name__ == "__main__":
    main()
