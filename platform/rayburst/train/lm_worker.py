"""What each worker of the main job does: a loop over text, on whatever workers there are.

Every worker streams the text from the run's folder, where the driver has put it, and computes its
parts of each global batch; the run (`rayburst.train.run`) takes care of checkpoints, resuming and
leaving.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from rayburst.checkpoint.store import ObjectStore
from rayburst.errors import DataError
from rayburst.train.corpus import Corpus, open_corpus
from rayburst.train.gpt import GPT, PRESETS
from rayburst.train.laid_out import Looped
from rayburst.train.learner import CLIP_NORM, adamw, loss_of, make_optimizer, nats, schedule_of
from rayburst.train.lm_config import LMConfig
from rayburst.train.order import Ints, rank_slice
from rayburst.train.parallel.layout import Layout
from rayburst.train.parallel.parallel import ParallelOptions
from rayburst.train.parallel.precision import Precision
from rayburst.train.parallel.shape import plan_layout
from rayburst.train.run import Run, RunOptions, start_run
from rayburst.train.text import windows

__all__ = ["train"]

QUICK_WINDOWS = 128
FINAL_WINDOWS = 1024
WINDOWS_AT_ONCE = 32
"""Of each copy, in a layout."""


def train(config: dict[str, Any]) -> None:
    """The training function: `config` holds the fields of an LMConfig."""
    lm = LMConfig(**{**config, "data": tuple(config["data"])})
    shape = PRESETS[lm.preset]
    validation = _Validation(shape.block_size)
    run = start_run(
        RunOptions(
            mode=lm.mode,
            micro_batch=0 if lm.layout else lm.micro_batch,
            checkpoint_every_s=lm.checkpoint_every_s or None,
            leave_margin_s=lm.leave_margin_s,
        ),
        config={
            "model": shape.to_dict(),
            "data": list(lm.data) or "Python's own sources",
            "column": lm.column,
        },
        measure=validation.measure,
    )
    folder = ObjectStore.open(f"{lm.storage.rstrip('/')}/{lm.run}")
    corpus = open_corpus(folder, block_size=shape.block_size, seed=lm.seed)
    torch.manual_seed(lm.seed)
    model = GPT(shape)
    if lm.layout:
        laid_out = _laid_out(run, model, lm)
        validation.begin(run, laid_out, corpus)
        loss: Callable[[Tensor, Tensor], Any] = laid_out
    else:
        optimizer, schedule = make_optimizer(model, lr=lm.lr, steps=lm.steps)
        wrapped = run.prepare(model, optimizer, schedule, clip_norm=CLIP_NORM)
        validation.begin(run, model, corpus)
        loss = partial(loss_of, wrapped)
    batches = run.batches(
        corpus.samples, global_batch=lm.global_batch, seed=lm.seed, steps=lm.steps
    )
    for inputs, targets in batches:
        run.backward(loss(inputs, targets))
        run.step()


def _laid_out(run: Run, model: GPT, lm: LMConfig) -> Looped:
    given = lm.precision or ("bf16" if torch.cuda.is_available() else "fp32")
    precision = cast(Precision, given)
    options = ParallelOptions(
        layout=_layout(run, lm, precision),
        precision=precision,
        micro_batch=lm.micro_batch,
        clip_norm=CLIP_NORM,
        recompute=lm.recompute,
        compile_backend=lm.compile_backend or None,
    )
    return run.lay_out(
        model,
        options,
        lambda parameters: adamw(parameters, lr=lm.lr),
        lambda optimizer: schedule_of(optimizer, steps=lm.steps),
    )


def _layout(run: Run, lm: LMConfig, precision: Precision) -> Layout:
    if lm.layout != "auto":
        return Layout.parse(lm.layout)
    memory_bytes = int(lm.device_memory_gb * 1e9) or None
    plan = plan_layout(
        PRESETS[lm.preset],
        run.machines(memory_bytes=memory_bytes),
        precision,
        global_batch=lm.global_batch,
        micro_batch=lm.micro_batch,
        recompute=lm.recompute,
    )
    if run.rank == 0:
        run.log("plan", text=str(plan))
    return plan.layout


class _Validation:
    """Bits a byte on windows spread over the held-out text, shared by the ranks."""

    def __init__(self, block_size: int) -> None:
        self._block = block_size

    def begin(self, run: Run, model: nn.Module, corpus: Corpus) -> None:
        """What to measure. DataError when the held-out text is too short for a window."""
        if corpus.validation.size <= self._block:
            raise DataError(
                f"the held-out text has {corpus.validation.size} bytes and a window needs "
                f"{self._block + 1}: give more text or a smaller preset"
            )
        self._run, self._model, self._data = run, model, corpus.validation
        self._order0 = corpus.order0_bits_per_byte

    def measure(self, is_last: bool) -> Mapping[str, float]:
        """The metrics that a checkpoint carries; on more windows for the last one."""
        block, data = self._block, self._data
        wanted = FINAL_WINDOWS if is_last else QUICK_WINDOWS
        count = min(wanted, max(1, (data.size - 1) // block))
        starts = np.linspace(0, data.size - block - 1, count).astype(np.int64)
        if isinstance(self._model, Looped):
            mean = self._of_copies(self._model, starts)
        else:
            mean = self._of_ranks(self._model, starts)
        bits = mean / math.log(2)
        if self._run.rank == 0:
            self._run.log("validation", bits_per_byte=bits)
        return {"val_bits_per_byte": bits, "order0_bits_per_byte": self._order0}

    def _of_ranks(self, model: nn.Module, starts: Ints) -> float:
        mine = rank_slice(len(starts), self._run.rank, self._run.world)
        total = torch.zeros(1, dtype=torch.float64)
        if len(mine):
            total += nats(model, *self._windows(starts, mine))
        if self._run.world > 1:
            dist.all_reduce(total)
        return total.item() / (len(starts) * self._block)

    def _of_copies(self, model: Looped, starts: Ints) -> float:
        """A part of them at a time; a last part with too few for every stage is left out."""
        copies, total, seen = model.layout.copies, 0.0, 0
        for at in range(0, len(starts), WINDOWS_AT_ONCE * copies):
            part = starts[at : at + WINDOWS_AT_ONCE * copies]
            mine = rank_slice(len(part), model.copy or 0, copies)
            if at and len(part) < copies * model.layout.pipeline:
                break
            mean = model.evaluate(*self._windows(part, mine), share=len(mine) / len(part))
            total, seen = total + mean * len(part), seen + len(part)
        return total / seen

    def _windows(self, starts: Ints, mine: range) -> tuple[Tensor, Tensor]:
        return windows(self._data, starts[mine.start : mine.stop], self._block)
