"""The main job: train a byte-level GPT, on whatever workers there are, to the end.

    config = LMConfig(run="mine", storage="s3://bucket/runs", preset="micro", most=4)
    result = run(config, say=print)         # {"steps", "val_bits_per_byte", "checkpoint", ...}

This is the driver's side: it checks the input, starts an ElasticTrainer, and tells what happens as
it happens. What the workers do is in `rayburst.train.lm_worker`. Needs a Ray to connect to
(`ray.init()` starts one on this machine where there is none).
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from argparse import ArgumentTypeError
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
from ray.train import TrainingFailedError

from rayburst.checkpoint.store import ObjectStore
from rayburst.errors import CheckpointError, StoreError
from rayburst.train import checkpoints, runlog
from rayburst.train.lm_config import LMConfig
from rayburst.train.lm_worker import train
from rayburst.train.narrator import Narrator
from rayburst.train.sources import find_sources
from rayburst.train.trainer import ElasticOptions, ElasticTrainer, Workers
from rayburst.train.versions import is_tested_ray

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
    _connect(os.environ)
    trainer = ElasticTrainer(
        train,
        config=asdict(config),
        run=config.run,
        storage=config.storage,
        workers=Workers(least=config.least, most=config.most, use_gpu=config.use_gpu),
        options=options,
    )
    with _Telling(config, say):
        trainer.fit()
    return _result(config, folder)


def _connect(environ: Mapping[str, str]) -> None:
    """To the cluster of RAY_ADDRESS, or to one on this machine."""
    if ray.is_initialized():
        return
    address = environ.get("RAY_ADDRESS")
    # Ray Train's own helpers look for "the" cluster of the machine, and there may be several
    env_vars = {"RAY_ADDRESS": address} if address else {}
    ray.init(logging_level=logging.WARNING, runtime_env={"env_vars": env_vars})


def _announce(
    config: LMConfig, folder: ObjectStore, size_bytes: int, say: Callable[[str], None]
) -> None:
    what = ", ".join(config.data) or "Python's own sources"
    say(
        f"run {config.run}: preset {config.preset}, {config.least} to {config.most} workers, "
        f"{config.steps} steps of {config.global_batch} samples, {size_bytes / 1e6:.1f} MB from "
        f"{what}"
    )
    problem = checkpoints.mend_snapshot(folder)
    if problem is not None:
        say(f"Ray's list of checkpoints is unusable ({problem}); moved aside, nothing is lost")
    found = checkpoints.newest(folder)
    say(f"resumes from {folder.uri}/{found}" if found else f"checkpoints go to {folder.uri}")


class _Telling:
    """Says what rank 0 publishes, from a thread, while the main thread waits for the end."""

    def __init__(self, config: LMConfig, say: Callable[[str], None]) -> None:
        self._config = config
        self._narrator = Narrator(say)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="telling", daemon=True)

    def __enter__(self) -> None:
        if is_tested_ray():
            from rayburst.train import _ray_hooks

            _ray_hooks.kv_delete(_ray_hooks.progress_key(self._config.run))
            self._thread.start()

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(5)

    def _follow(self) -> None:
        from rayburst.train import _ray_hooks

        key = _ray_hooks.progress_key(self._config.run)
        while not self._ended.wait(1.0):
            self._narrator.hear(_ray_hooks.kv_get(key), time.time())
        self._narrator.hear(_ray_hooks.kv_get(key), time.time(), is_last=True)


def _result(config: LMConfig, folder: ObjectStore) -> dict[str, Any]:
    name = checkpoints.newest(folder)
    if name is None:
        raise CheckpointError(f"training ended, but {folder.uri} holds no complete checkpoint")
    meta = json.loads(folder.get(f"{name}/{checkpoints.META}"))
    try:
        starts = [r for r in runlog.read_folder(folder) if r["kind"] == "start"]
    except StoreError as error:
        logging.getLogger(__name__).warning("the run log cannot be read: %s", error)
        starts = []
    worlds = [record["world"] for record in starts if record["rank"] == 0]
    return {
        "steps": meta["step"],
        "world_sizes": [w for i, w in enumerate(worlds) if i == 0 or w != worlds[i - 1]],
        "val_bits_per_byte": meta["val_bits_per_byte"],
        "order0_bits_per_byte": meta["order0_bits_per_byte"],
        "run": config.run,
        "checkpoint": f"{folder.uri}/{name}",
    }
