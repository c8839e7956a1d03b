"""A training job for the tests whose speed is the same on any machine: its steps are naps.

python steady.py --run NAME --storage FOLDER --steps N --step-s S --workers MIN:MAX

A step takes `step_s` over the number of workers. It saves its step when it leaves and every second,
publishes progress as every trainer does, and appends a line for each group that starts.
"""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import ray
from ray.train import get_context

from rayburst.train import losses, worker
from rayburst.train.progress import Meter, Progress
from rayburst.train.trainer import ElasticOptions, ElasticTrainer, Workers


def train(config: dict[str, Any]) -> None:
    from rayburst.train import _ray_hooks as hooks

    where = worker.place()
    folder = Path(config["storage"]) / config["run"]
    folder.mkdir(parents=True, exist_ok=True)
    saved = folder / "step"
    step = int(saved.read_text()) if saved.exists() else 0
    agreement = worker.agreement(where, margin_s=4.0)
    meter, since = Meter(steps=config["steps"], window_s=5.0), 0.0
    if where.rank == 0:
        with (folder / "starts").open("a") as starts:
            starts.write(json.dumps({"t": time.time(), "step": step, "pool": where.pool}) + "\n")
    while step < config["steps"]:
        agreement.begin(wants_checkpoint=False)
        time.sleep(config["step_s"] / where.world)
        leave = agreement.end().leave
        step += 1
        now = time.time()
        since = since or now
        if where.rank == 0:
            saved.with_suffix(".new").write_text(str(step))
            saved.with_suffix(".new").replace(saved)
            _, eta_s = meter.add(t=now, step=step, tokens=1)
            progress = Progress(
                t=now,
                since=since,
                step=step,
                steps=config["steps"],
                resumed_from=0,
                world=where.world,
                loss=0.0,
                val_bits_per_byte=None,
                tokens_per_s=None,
                eta_s=eta_s,
            )
            hooks.kv_put(
                hooks.progress_key(get_context().get_experiment_name()), progress.to_json()
            )
        if leave and step < config["steps"]:
            losses.leave(agreement.reason)


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, kind in (("run", str), ("storage", str), ("steps", int), ("step-s", float)):
        parser.add_argument(f"--{name}", type=kind, required=True)
    parser.add_argument("--workers", default="1:1")
    args = vars(parser.parse_args())
    least, most = map(int, args.pop("workers").split(":"))
    ray.init(runtime_env={"env_vars": {"RAY_ADDRESS": os.environ["RAY_ADDRESS"]}})
    ElasticTrainer(
        train,
        config=args,
        run=args["run"],
        storage=args["storage"],
        workers=Workers(least=least, most=most),
        options=ElasticOptions(resize_interval_s=5.0),
    ).fit()


if __name__ == "__main__":
    main()
