"""Distillation: a smaller GPT learns from a larger one's answers, on whatever workers there are.

    loss = distillation_loss(student_logits, teacher_logits, targets, temperature=2.0, soft=0.5)
    learn({**asdict(config), "folder": "s3://fleet/runs/student-1"})    # alone; no folder under Ray

The loss is that of Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network" (2015):
cross-entropy with the text, and the divergence from the teacher's probabilities at a temperature,
times its square, so that its gradient stays comparable. Every worker holds the whole teacher, in
evaluation mode; only the student learns and is saved. `rayburst.models.distill_job` is the driver.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from rayburst.checkpoint.store import ObjectStore
from rayburst.errors import DataError
from rayburst.models.registry import ModelRegistry
from rayburst.train.corpus import open_corpus
from rayburst.train.gpt import GPT, GPTConfig
from rayburst.train.hardware import this_device
from rayburst.train.learner import CLIP_NORM, make_optimizer
from rayburst.train.order import rank_slice
from rayburst.train.run import Run, RunOptions, start_run
from rayburst.train.run_options import Mode
from rayburst.train.text import Bytes, windows
from rayburst.train.trained import load_model

__all__ = ["DistillConfig", "distillation_loss", "learn"]

QUICK_WINDOWS = 64
FINAL_WINDOWS = 512
_AT_ONCE = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillConfig:
    """One distillation. `student` holds the fields of a GPTConfig.

    `teacher`: a version of the models of `store`, such as gpt@1; without a `store` the address of a
    checkpoint. `text`: the folder of a run that keeps a text. `temperature` and `soft` are those of
    `distillation_loss`; the rest is as in `rayburst.train.lm_config.LMConfig`.
    """

    teacher: str
    text: str
    student: Mapping[str, Any]
    store: str = ""
    temperature: float = 2.0
    soft: float = 0.5
    steps: int = 300
    global_batch: int = 32
    micro_batch: int = 0
    lr: float = 4e-3
    seed: int = 0
    mode: Mode = "fast"
    checkpoint_every_s: float = 0.0
    leave_margin_s: float = 8.0
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_loss(self.temperature, self.soft)
        if self.mode not in get_args(Mode):
            raise ValueError(f"mode {self.mode!r}: give one of {', '.join(get_args(Mode))}")
        if self.steps < 1 or self.global_batch < 1 or self.lr <= 0:
            raise ValueError(
                f"steps={self.steps}, global_batch={self.global_batch}, lr={self.lr}: give steps "
                "and batch of 1 or more and lr above 0"
            )
        GPTConfig(**self.student)  # has checks of its own


def _check_loss(temperature: float, soft: float) -> None:
    if temperature <= 0 or not 0 <= soft <= 1:
        raise ValueError(
            f"temperature={temperature:g}, soft={soft:g}: give a temperature above 0, for example "
            "2, and a share of the teacher from 0 to 1, for example 0.5"
        )


def distillation_loss(
    student: Tensor, teacher: Tensor, targets: Tensor, *, temperature: float, soft: float
) -> Tensor:
    """The mean loss in nats a token, in float32.

    `soft` x temperature^2 x KL(teacher || student) at `temperature`, and (1 - `soft`) x the
    cross-entropy of `targets`.

    Args:
        student: logits [B, T, V].
        teacher: logits [B, T, V]; no gradient goes there.
        targets: LongTensor [B, T].
        temperature: above 0; higher ones show more of what the teacher thinks of other tokens.
        soft: the teacher's share, 0 to 1; 0 is ordinary training.
    """
    hard = GPT.loss(student, targets)
    if soft == 0:
        return hard
    own = F.log_softmax(student.flatten(0, 1).float() / temperature, dim=-1)
    wanted = F.log_softmax(teacher.detach().flatten(0, 1).float() / temperature, dim=-1)
    apart = F.kl_div(own, wanted, reduction="batchmean", log_target=True)
    return soft * temperature**2 * apart + (1 - soft) * hard


def learn(fields: Mapping[str, Any]) -> None:
    """The training function; `fields` are a DistillConfig's, and `folder` outside of Ray Train."""
    given = dict(fields)
    folder = given.pop("folder", None)
    config = DistillConfig(**given)
    shape = GPTConfig(**config.student)
    held_out = _HeldOut()
    run = start_run(
        RunOptions(
            mode=config.mode,
            micro_batch=config.micro_batch,
            checkpoint_every_s=config.checkpoint_every_s or None,
            leave_margin_s=config.leave_margin_s,
        ),
        storage=folder,
        config={"model": shape.to_dict(), **config.about},
        measure=held_out.measure,
    )
    corpus = open_corpus(
        ObjectStore.open(config.text), block_size=shape.block_size, seed=config.seed
    )
    teacher = _teacher(config)
    torch.manual_seed(config.seed)
    student = GPT(shape)
    optimizer, schedule = make_optimizer(student, lr=config.lr, steps=config.steps)
    wrapped = run.prepare(student, optimizer, schedule, clip_norm=CLIP_NORM)
    held_out.begin(run, student, teacher, corpus.validation)
    batches = run.batches(
        corpus.samples, global_batch=config.global_batch, seed=config.seed, steps=config.steps
    )
    for inputs, targets in batches:
        inputs, targets = (one.to(this_device(), non_blocking=True) for one in (inputs, targets))
        with _autocast():
            own = wrapped(inputs)[0]
            with torch.no_grad():
                wanted = teacher(inputs)[0]
        run.backward(
            distillation_loss(
                own, wanted, targets, temperature=config.temperature, soft=config.soft
            )
        )
        run.step()


def _teacher(config: DistillConfig) -> GPT:
    if config.store:
        model, _ = ModelRegistry.open(config.store).load(config.teacher)
    else:
        model, _ = load_model(config.teacher)
    return model.eval().requires_grad_(False).to(this_device())


def _autocast() -> torch.autocast:
    kind = this_device().type
    return torch.autocast(kind, dtype=torch.bfloat16, enabled=kind == "cuda")


class _HeldOut:
    """What both say to windows spread over the held-out text, shared by the ranks."""

    def begin(self, run: Run, student: GPT, teacher: GPT, data: Bytes) -> None:
        """What to measure. DataError when the held-out text is too short for a window."""
        self._run, self._student, self._teacher, self._data = run, student, teacher, data
        self._block = student.config.block_size
        if data.size <= self._block:
            raise DataError(
                f"the held-out text has {data.size} bytes and a window needs {self._block + 1}: "
                "give more text with --data"
            )

    def measure(self, is_last: bool) -> Mapping[str, float]:
        """The metrics that a checkpoint carries; on more windows for the last one."""
        block = self._block
        wanted = FINAL_WINDOWS if is_last else QUICK_WINDOWS
        count = min(wanted, max(1, (self._data.size - 1) // block))
        starts = np.linspace(0, self._data.size - block - 1, count).astype(np.int64)
        mine = rank_slice(count, self._run.rank, self._run.world)
        sums = torch.zeros(3, dtype=torch.float64)
        for first in range(mine.start, mine.stop, _AT_ONCE):
            part = starts[first : min(first + _AT_ONCE, mine.stop)]
            sums += self._sums(*windows(self._data, part, block))
        if self._run.world > 1:
            dist.all_reduce(sums)
        same, own, teachers = (sums / (count * block)).tolist()
        found = {
            "val_bits_per_byte": own / math.log(2),
            "teacher_bits_per_byte": teachers / math.log(2),
            "agreement": same,
        }
        if self._run.rank == 0:
            self._run.log("validation", bits_per_byte=found["val_bits_per_byte"], agreement=same)
        return found

    @torch.no_grad()
    def _sums(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Positions where both say the same, nats of the student and of the teacher: [3]."""
        inputs, targets = inputs.to(this_device()), targets.to(this_device())
        self._student.eval()
        try:
            with _autocast():
                own, wanted = self._student(inputs)[0], self._teacher(inputs)[0]
        finally:
            self._student.train()
        same = (own.argmax(-1) == wanted.argmax(-1)).sum()
        nats = [GPT.loss(one, targets) * targets.numel() for one in (own, wanted)]
        return torch.stack([same, *nats]).double().cpu()
