"""What each worker of the main job does: load, resume, step, save, and leave when it must.

Every worker loads the text itself and takes its slice of each global batch; the model is
replicated. Rank 0 writes checkpoints and publishes progress; all ranks write the run log. A
checkpoint that the store refuses is skipped with a warning and tried again after the next interval;
only the last one must succeed.
"""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist

from rayburst.checkpoint.store import ObjectStore
from rayburst.errors import CheckpointError, DataError, StoreError
from rayburst.train import checkpoints, losses, versions, worker
from rayburst.train.gpt import GPT, PRESETS
from rayburst.train.learner import Learner
from rayburst.train.lm_config import LMConfig
from rayburst.train.notices import Agreement
from rayburst.train.progress import Meter, Progress
from rayburst.train.runlog import RunLog
from rayburst.train.text import (
    Batches,
    Text,
    load_text,
    order0_bits_per_byte,
    rank_slice,
    windows,
)

__all__ = ["train"]

QUICK_WINDOWS = 128
FINAL_WINDOWS = 1024
_PUBLISH_INTERVAL_S = 1.0
_logger = logging.getLogger(__name__)


def train(config: dict[str, Any]) -> None:
    """The training function: `config` holds the fields of an LMConfig."""
    lm = LMConfig(**{**config, "data": tuple(config["data"])})
    where = worker.place()
    torch.set_num_threads(where.threads)
    torch.manual_seed(lm.seed)
    text = load_text(lm.data, lm.column)
    _check_same_text(text)
    folder = ObjectStore.open(f"{lm.storage}/{lm.run}")
    with RunLog(folder, rank=where.rank, world=where.world, clock=time.time) as log:
        _Run(lm, where, text, folder, log).to_the_end()


@dataclass(slots=True)
class _Position:
    """How far the run is: steps done, samples taken, and the last validation."""

    step: int = 0
    samples: int = 0
    val_bits_per_byte: float | None = None


class _Run:
    def __init__(
        self, lm: LMConfig, where: worker.Place, text: Text, folder: ObjectStore, log: RunLog
    ) -> None:
        self._lm, self._where, self._text = lm, where, text
        self._folder, self._log = folder, log
        self._at = _Position()
        model = GPT(PRESETS[lm.preset])
        wrapped = ray.train.torch.prepare_model(model)
        self._learner = Learner(
            model, wrapped, lr=lm.lr, steps=lm.steps, micro_batch=lm.micro_batch
        )
        self._batches = Batches(
            text.train,
            block_size=model.config.block_size,
            global_batch=lm.global_batch,
            seed=lm.seed,
        )
        self._order0 = order0_bits_per_byte(text.validation)
        self._agreement: Agreement = worker.agreement(where, lm.leave_margin_s)
        self._meter = Meter(steps=lm.steps)
        self._saved_s = self._published_s = time.time()
        self._progress: Progress | None = None
        self._resumed_from = 0
        self._since_s = 0.0
        self._checkpoint_s: float | None = None

    def to_the_end(self) -> None:
        """Resume, train, validate, save. Leaves by RayActorError when the group must restart."""
        self._resume()
        w = self._where
        self._log.write(
            "start", step=self._at.step, host=w.host, market=w.market, pool=w.pool, node=w.node_id
        )
        self._saved_s = time.time()
        if self._at.step >= self._lm.steps and self._at.val_bits_per_byte is not None:
            return  # an earlier submission of this run came to the end
        while self._at.step < self._lm.steps:
            self._step()
        self._validate(FINAL_WINDOWS)
        self._save(must=True)
        self._log.write(
            "end",
            step=self._at.step,
            val_bits_per_byte=self._at.val_bits_per_byte,
            order0_bits_per_byte=self._order0,
        )

    def _step(self) -> None:
        began_s = time.time()
        w = self._where
        is_due = w.rank == 0 and began_s - self._saved_s >= self._lm.checkpoint_every_s
        self._agreement.begin(wants_checkpoint=is_due)
        inputs, targets = self._batches.at(self._at.samples, rank=w.rank, world=w.world)
        share = inputs.shape[0] / self._lm.global_batch
        loss = self._learner.step(inputs, targets, step=self._at.step, share=share)
        verdict = self._agreement.end()
        self._at.step += 1
        self._at.samples += self._lm.global_batch
        now_s = time.time()
        self._log.write(
            "step",
            step=self._at.step,
            loss=loss,
            tokens=inputs.numel(),
            duration_s=now_s - began_s,
        )
        self._note(loss, now_s)
        if verdict.leave and self._at.step < self._lm.steps:
            self._leave()
        elif verdict.checkpoint and self._at.step < self._lm.steps:
            self._validate(QUICK_WINDOWS)
            self._save()

    def _leave(self) -> None:
        reason = self._agreement.reason
        self._publish(state=f"saving and leaving: {reason}")
        self._save()
        self._log.write("leave", step=self._at.step, reason=reason)
        self._log.close()
        losses.leave(f"{reason}; step {self._at.step} was the last with {self._where.world}")

    def _resume(self) -> None:
        """Take up the newest complete checkpoint, the same on every rank."""
        found = [checkpoints.newest(self._folder) if self._where.rank == 0 else None]
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.broadcast_object_list(found, src=0)
        if found[0] is None:
            return
        state, meta = checkpoints.read(self._folder, found[0])
        self._check_same_run(meta, found[0])
        self._learner.load(state)
        self._at = _Position(
            step=meta["step"],
            samples=meta["data"]["samples"],
            val_bits_per_byte=meta["val_bits_per_byte"],
        )
        self._resumed_from = self._at.step
        if self._where.rank == 0:
            checkpoints.delete(self._folder, checkpoints.orphans(self._folder, keep=found[0]))

    def _check_same_run(self, meta: dict[str, Any], name: str) -> None:
        config = PRESETS[self._lm.preset].to_dict()
        if meta["config"] != config:
            raise CheckpointError(
                f"{self._folder.uri}/{name} holds a model of another shape ({meta['config']}) than "
                f"preset {self._lm.preset!r} has. Give another --run, or the preset it began with"
            )
        if meta["data"]["fingerprint"] != self._text.fingerprint:
            raise DataError(
                f"run {self._lm.run} was trained on other data ({meta['data']['locations']}). "
                "Give another --run, or the --data and --column it began with"
            )

    def _validate(self, count: int) -> None:
        """Bits a byte on `count` windows spread over the held-out text, shared by the ranks."""
        data, block = self._text.validation, self._batches.block_size
        if data.size <= block:
            raise DataError(
                f"the held-out text has {data.size} bytes and a window needs {block + 1}: "
                "give more text or a smaller preset"
            )
        count = min(count, max(1, (data.size - 1) // block))
        starts = np.linspace(0, data.size - block - 1, count).astype(np.int64)
        mine = rank_slice(count, self._where.rank, self._where.world)
        total = torch.zeros(1, dtype=torch.float64)
        if len(mine):
            total += self._learner.nats(*windows(data, starts[mine.start : mine.stop], block))
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(total)
        self._at.val_bits_per_byte = total.item() / (count * block) / float(np.log(2))
        if self._where.rank == 0:
            self._log.write(
                "validation", step=self._at.step, bits_per_byte=self._at.val_bits_per_byte
            )

    def _save(self, *, must: bool = False) -> None:
        """Write a checkpoint from rank 0 and report it to Ray; every rank waits for that."""
        began_s = time.time()
        checkpoint, uri = None, None
        if self._where.rank == 0:
            name = checkpoints.checkpoint_name(self._at.step, began_s)
            try:
                uri = checkpoints.save(self._folder, name, self._learner.state(), self._meta())
                storage = ray.train.get_context().get_storage()
                checkpoint = ray.train.Checkpoint(
                    path=storage.build_checkpoint_path_from_name(name),
                    filesystem=storage.storage_filesystem,
                )
            except StoreError:
                if must:
                    raise
                _logger.warning("step %d is not saved", self._at.step, exc_info=True)
        metrics = {"step": self._at.step, "val_bits_per_byte": self._at.val_bits_per_byte}
        # Rank 0 comes here only when the bytes are safe; the others wait for it in this barrier.
        ray.train.report(
            metrics,
            checkpoint=checkpoint,
            checkpoint_upload_mode=ray.train.CheckpointUploadMode.NO_UPLOAD,
        )
        self._saved_s = time.time()
        self._checkpoint_s = self._saved_s - began_s
        self._log.write(
            "checkpoint", step=self._at.step, uri=uri, blocked_s=self._saved_s - began_s
        )

    def _meta(self) -> dict[str, Any]:
        lm = self._lm
        return {
            "step": self._at.step,
            "run": lm.run,
            "config": PRESETS[lm.preset].to_dict(),
            "val_bits_per_byte": self._at.val_bits_per_byte,
            "order0_bits_per_byte": self._order0,
            "data": {
                "samples": self._at.samples,
                "fingerprint": self._text.fingerprint,
                "locations": list(lm.data) or "Python's own sources",
                "column": lm.column,
                "seed": lm.seed,
                "global_batch": lm.global_batch,
            },
            "world": self._where.world,
            "versions": versions.recorded(),
        }

    def _note(self, loss: float, now_s: float) -> None:
        """Keep count of the speed, and publish it about each second."""
        lm, at = self._lm, self._at
        if self._where.rank != 0:
            return
        tokens = lm.global_batch * self._batches.block_size
        tokens_per_s, eta_s = self._meter.add(t=now_s, step=at.step, tokens=tokens)
        self._since_s = self._since_s or now_s
        self._progress = Progress(
            t=now_s,
            since=self._since_s,
            step=at.step,
            steps=lm.steps,
            resumed_from=self._resumed_from,
            world=self._where.world,
            loss=loss,
            val_bits_per_byte=at.val_bits_per_byte,
            tokens_per_s=tokens_per_s,
            eta_s=eta_s,
            checkpoint_s=self._checkpoint_s,
        )
        is_edge = at.step in (self._resumed_from + 1, lm.steps)
        if is_edge or now_s - self._published_s >= _PUBLISH_INTERVAL_S:
            self._publish()

    def _publish(self, state: str = "running") -> None:
        if self._progress is None or not versions.is_tested_ray():
            return
        from rayburst.train import _ray_hooks

        fields = {**json.loads(self._progress.to_json()), "state": state}
        _ray_hooks.kv_put(_ray_hooks.progress_key(self._lm.run), json.dumps(fields).encode())
        self._published_s = time.time()


def _check_same_text(text: Text) -> None:
    """DataError when the ranks do not hold the same bytes."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return
    all_of_them: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(all_of_them, text.fingerprint)
    if len(set(all_of_them)) > 1:
        raise DataError(
            "the workers found different text (machines with other files, or another Python): "
            "give --data a place that all of them read, for example s3://bucket/corpus"
        )
