"""The main job: train a byte-level GPT, on whatever workers there are, to the end.

    config = LMConfig(run="mine", storage="s3://bucket/runs", preset="micro", most=4)
    result = run(config, say=print)         # {"steps", "val_bits_per_byte", "checkpoint", ...}

This is the driver's side: it checks the input, starts an ElasticTrainer, and tells what happens as
it happens. What the workers do is in `rayburst.train.lm_worker`. Needs a Ray to connect to
(`ray.init()` starts one on this machine where there is none).
"""

from __future__ import annotations

import os
from argparse import ArgumentTypeError
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ray.train import TrainingFailedError

from rayburst.checkpoint.store import ObjectStore
from rayburst.train.corpus import keep_text
from rayburst.train.driver import last_checkpoint, tell_report, tell_where
from rayburst.train.lm_config import LMConfig
from rayburst.train.sources import find_sources
from rayburst.train.telling import Telling, connect_to_ray
from rayburst.train.trained import address
from rayburst.train.trainer import ElasticOptions, ElasticTrainer, Workers

__all__ = ["LMConfig", "TrainingFailedError", "default_storage", "run", "worker_range"]


def worker_range(text: str) -> tuple[int, int]:
    """`1:4` or `4` as (least, most)."""
    least, _, most = text.partition(":")
    if not least.isdecimal() or not (most or least).isdecimal():
        raise ArgumentTypeError(f"{text!r}: give MIN:MAX, for example 1:4, or one number")
    return int(least), int(most or least)


def default_storage(environ: Mapping[str, str], say: Callable[[str], None]) -> str:
    """Where runs are kept when nothing is said: in the fleet's store, else in the home folder."""
    if environ.get("RAYBURST_STORE"):
        return f"{environ['RAYBURST_STORE'].rstrip('/')}/runs"
    place = str(Path.home() / "rayburst" / "runs")
    say(f"no --storage and no RAYBURST_STORE: runs are kept in {place}, on this machine only")
    return place


def _train(config: dict[str, Any]) -> None:
    """The workers' part; what it needs is loaded there and not in the driver."""
    from rayburst.train.lm_worker import train

    train(config)


def run(
    config: LMConfig, say: Callable[[str], None], options: ElasticOptions | None = None
) -> dict[str, Any]:
    """Train to the end; `say` gets one line at a time. Returns what `RESULT` prints.

    Raises DataError before anything starts when the data cannot be used, StoreError when the
    storage cannot be reached, and `ray.train.TrainingFailedError` when training failed.
    """
    config = config.filled()
    folder = ObjectStore.open(f"{config.storage.rstrip('/')}/{config.run}")
    sources = find_sources(config.data, config.column)
    _announce(config, folder, sum(source.size_bytes for source in sources), say)
    keep_text(folder, sources)
    connect_to_ray(os.environ)
    trainer = ElasticTrainer(
        _train,
        config=asdict(config),
        run=config.run,
        storage=config.storage,
        workers=Workers(least=config.least, most=config.most, use_gpu=config.use_gpu),
        options=options,
    )
    with Telling(config.run, say):
        trainer.fit()
    return _result(config, folder, say)


def _announce(
    config: LMConfig, folder: ObjectStore, size_bytes: int, say: Callable[[str], None]
) -> None:
    what = ", ".join(config.data) or "Python's own sources"
    say(
        f"run {config.run}: preset {config.preset}, {config.least} to {config.most} workers, "
        f"{config.steps} steps of {config.global_batch} samples, {size_bytes / 1e6:.1f} MB from "
        f"{what}"
    )
    tell_where(folder, say)


def _result(config: LMConfig, folder: ObjectStore, say: Callable[[str], None]) -> dict[str, Any]:
    newest = last_checkpoint(folder)
    report = tell_report(folder, say)
    metrics = newest.about.get("metrics") or {}
    return {
        "steps": newest.step,
        "world_sizes": list(report.world_sizes),
        "val_bits_per_byte": metrics.get("val_bits_per_byte"),
        "order0_bits_per_byte": metrics.get("order0_bits_per_byte"),
        "run": config.run,
        "checkpoint": address(folder.uri, newest.step),
        "report": report.to_json(),
    }
