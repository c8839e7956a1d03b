"""Fine-tuning on a cluster: elastic, resumed after any interruption, exported at its end.

    result = finetune(config, run="mine", storage="s3://bucket/runs", workers=Workers(most=4))
    result["weights"]                       # "s3://bucket/runs/mine/export"

This is the driver's side; what the workers do is `rayburst.train.finetune.learn`. Needs a Ray to
connect to (`ray.init()` starts one on this machine where there is none). The model is built once
more here, on the CPU, to be exported.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from rayburst.checkpoint.store import ObjectStore
from rayburst.train.driver import last_checkpoint, tell_report, tell_where
from rayburst.train.finetune import TuneConfig, export, imported, learn
from rayburst.train.telling import Telling, connect_to_ray
from rayburst.train.trained import address
from rayburst.train.trainer import ElasticOptions, ElasticTrainer, Workers

__all__ = ["finetune"]


def finetune(
    config: TuneConfig,
    *,
    run: str,
    storage: str,
    workers: Workers,
    say: Callable[[str], None],
    options: ElasticOptions | None = None,
) -> dict[str, Any]:
    """Tune to the end and export; what `RESULT` prints. `say` gets one line at a time.

    TrainError before anything starts when a name cannot be imported here, and
    `ray.train.TrainingFailedError` when training failed. `run` is a folder below `storage`; the
    same one again goes on from its newest checkpoint.
    """
    if not run or "/" in run or run.startswith("."):
        raise ValueError(f"run {run!r}: give a name without '/', for example tune-1")
    for name in filter(None, (config.model, config.data, config.loss)):
        imported(name)
    folder = ObjectStore.open(f"{storage.rstrip('/')}/{run}")
    _announce(config, folder, workers, say)
    connect_to_ray(os.environ)
    trainer = ElasticTrainer(
        learn,
        config=config.to_dict(),
        run=run,
        storage=storage,
        workers=workers,
        options=options,
    )
    with Telling(run, say):
        trainer.fit()
    newest = last_checkpoint(folder)
    report = tell_report(folder, say)
    return {
        "run": run,
        "steps": newest.step,
        "loss": report.loss,
        "world_sizes": list(report.world_sizes),
        "checkpoint": address(folder.uri, newest.step),
        **export(config, folder.uri),
        "report": report.to_json(),
    }


def _announce(
    config: TuneConfig, folder: ObjectStore, workers: Workers, say: Callable[[str], None]
) -> None:
    how = f"LoRA of rank {config.lora_rank}" if config.lora_rank else "all weights"
    begins = f"from {config.weights}" if config.weights else "from the model's own beginning"
    say(
        f"tunes {config.model}, {how}, {begins}: {workers.least} to {workers.most} workers, "
        f"{config.steps} steps of {config.global_batch} samples"
    )
    tell_where(folder, say)
