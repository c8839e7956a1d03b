"""Distillation on a cluster: elastic, resumed after any interruption, published at its end.

    wish = Distillation(teacher="gpt@1", run="student-1", storage="s3://fleet/runs",
                        store="s3://fleet", preset="micro")
    result = distill(wish, workers=Workers(most=4), say=print)
    result["version"]                       # "gpt@2": gpt@1 with a variant "student" beside it

This is the driver's side; what the workers do is `rayburst.models.distill.learn`. Needs a Ray to
connect to (`ray.init()` starts one on this machine where there is none). What is published is
measured where the driver runs.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from rayburst.checkpoint.catalog import read_manifest
from rayburst.checkpoint.store import ObjectStore
from rayburst.errors import CheckpointError, DataError
from rayburst.models.distill import DistillConfig, learn
from rayburst.models.manifest import ModelVersion
from rayburst.models.publish import publish_checkpoint, run_folder
from rayburst.models.registry import ModelRegistry
from rayburst.models.students import publish_student
from rayburst.train.corpus import held_out, keep_text
from rayburst.train.driver import last_checkpoint, tell_report, tell_where
from rayburst.train.gpt import PRESETS, GPTConfig
from rayburst.train.keeper import FOLDER
from rayburst.train.lm_config import TRAINING
from rayburst.train.run_options import Mode
from rayburst.train.sources import DEFAULT_COLUMN, find_sources
from rayburst.train.telling import Telling, connect_to_ray
from rayburst.train.trained import address, newest_manifest
from rayburst.train.trainer import ElasticOptions, ElasticTrainer, Workers

__all__ = ["Distillation", "distill"]

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Distillation:
    """What is wanted. Zero in a number means: as the preset says.

    `teacher`: a version in `store` ("gpt@1", or an alias), or the address of a checkpoint
    ("s3://fleet/runs/first@300"), which is published as the next version of `name` first. Without a
    `name` a checkpoint's student is trained and not published. `data` "" is the teacher's text.
    `layers`, `heads` and `width` change the `preset`; block and alphabet are the teacher's.
    """

    teacher: str
    run: str
    storage: str
    store: str = ""
    name: str = ""
    preset: str = "micro"
    layers: int = 0
    heads: int = 0
    width: int = 0
    data: tuple[str, ...] = ()
    column: str = DEFAULT_COLUMN
    temperature: float = 2.0
    soft: float = 0.5
    steps: int = 0
    global_batch: int = 0
    micro_batch: int = 0
    lr: float = 0.0
    seed: int = 0
    mode: Mode = "fast"
    checkpoint_every_s: float = 0.0
    leave_margin_s: float = 8.0
    variant: str = "student"
    also: tuple[str, ...] = ()
    threads: int = 0

    def __post_init__(self) -> None:
        if not self.run or "/" in self.run or self.run.startswith("."):
            raise ValueError(f"run {self.run!r}: give a name without '/', for example student-1")
        if self.preset not in PRESETS:
            known = ", ".join(PRESETS)
            raise ValueError(f"preset {self.preset!r} is not known. Known: {known}")
        if "/" not in self.teacher and not self.store:
            raise ValueError(
                f"teacher {self.teacher!r} is a version, and no store says where it is: give "
                "--store s3://fleet or set RAYBURST_STORE; a checkpoint is given by its whole "
                "address, s3://fleet/runs/first@300"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Teacher:
    """What was found. `version` is None for a checkpoint."""

    ref: str
    shape: GPTConfig
    run: ObjectStore
    checkpoint: str
    version: ModelVersion | None


def distill(
    wish: Distillation,
    *,
    workers: Workers,
    say: Say,
    options: ElasticOptions | None = None,
) -> dict[str, Any]:
    """Distil to the end and publish; what `RESULT` prints. `say` gets one line at a time.

    ValueError, DataError, VersionError or CheckpointError before anything starts when teacher,
    student and text do not fit together, and `ray.train.TrainingFailedError` when training failed.
    The same run again goes on from its newest checkpoint.
    """
    teacher = _teacher(wish)
    folder = ObjectStore.open(f"{wish.storage.rstrip('/')}/{wish.run}")
    config = _config(wish, teacher, folder)
    _same_teacher(folder, teacher)
    if wish.data:
        keep_text(folder, find_sources(wish.data, wish.column))
    say(
        f"distils {teacher.ref} into {config.student}: {workers.least} to {workers.most} workers, "
        f"{config.steps} steps of {config.global_batch} samples"
    )
    tell_where(folder, say)
    connect_to_ray(os.environ)
    trainer = ElasticTrainer(
        learn,
        config=asdict(config),
        run=wish.run,
        storage=wish.storage,
        workers=workers,
        options=options,
    )
    with Telling(wish.run, say):
        trainer.fit()
    newest = last_checkpoint(folder)
    report = tell_report(folder, say)
    metrics = newest.about.get("metrics") or {}
    checkpoint = address(folder.uri, newest.step)
    say(
        f"held-out text: agrees with {teacher.ref} {metrics['agreement']:.2%}, "
        f"{metrics['val_bits_per_byte']:.3f} bits a byte (teacher "
        f"{metrics['teacher_bits_per_byte']:.3f})"
    )
    return {
        "run": wish.run,
        "steps": newest.step,
        "checkpoint": checkpoint,
        "teacher": teacher.ref,
        **{name: metrics[name] for name in sorted(metrics)},
        "world_sizes": list(report.world_sizes),
        **_published(wish, teacher, checkpoint, say),
        "report": report.to_json(),
    }


def _teacher(wish: Distillation) -> _Teacher:
    if "/" not in wish.teacher:
        registry = ModelRegistry.open(wish.store)
        version = registry.get(wish.teacher)
        run = run_folder(registry.store, version.checkpoint.uri)[0]
        shape = GPTConfig(**version.model.config)
        checkpoint = version.checkpoint.uri
        return _Teacher(
            ref=version.ref, shape=shape, run=run, checkpoint=checkpoint, version=version
        )
    store = ObjectStore.open(wish.store or wish.storage)
    run, step = run_folder(store, wish.teacher)
    found = newest_manifest(run) if step is None else read_manifest(run.child(FOLDER), step)
    try:
        if found is None:
            raise KeyError("no whole checkpoint")
        shape = GPTConfig(**found.about["config"]["user"]["model"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{wish.teacher} holds no byte-level GPT ({error}). Give a version, gpt@1, or the "
            "address of a checkpoint of jobs/train_lm.py, s3://fleet/runs/first@300"
        ) from error
    checkpoint = address(run.uri, found.step)
    return _Teacher(ref=checkpoint, shape=shape, run=run, checkpoint=checkpoint, version=None)


def _config(wish: Distillation, teacher: _Teacher, folder: ObjectStore) -> DistillConfig:
    """What the workers are told. The student reads what the teacher reads, and is smaller."""
    preset = PRESETS[wish.preset]
    student = replace(
        preset,
        vocab_size=teacher.shape.vocab_size,
        block_size=teacher.shape.block_size,
        n_layer=wish.layers or preset.n_layer,
        n_head=wish.heads or preset.n_head,
        n_embd=wish.width or preset.n_embd,
    )
    if _weights(student) >= _weights(teacher.shape):
        raise ValueError(
            f"the student would have {_weights(student):,} weights in its blocks and {teacher.ref} "
            f"has {_weights(teacher.shape):,}: give a smaller one, for example --layers 1 --width "
            f"{max(teacher.shape.n_head, teacher.shape.n_embd // 2)}"
        )
    if not wish.data and held_out(teacher.run) is None:
        raise DataError(
            f"{teacher.run.uri} keeps no text to distil on: give --data, for example --data "
            "s3://corpus/wiki"
        )
    chosen = TRAINING[wish.preset]
    return DistillConfig(
        teacher=teacher.ref if teacher.version else teacher.checkpoint,
        store=wish.store if teacher.version else "",
        text=folder.uri if wish.data else teacher.run.uri,
        student=student.to_dict(),
        temperature=wish.temperature,
        soft=wish.soft,
        steps=wish.steps or chosen.steps,
        global_batch=wish.global_batch or chosen.global_batch,
        micro_batch=wish.micro_batch or chosen.micro_batch,
        lr=wish.lr or chosen.lr,
        seed=wish.seed,
        mode=wish.mode,
        checkpoint_every_s=wish.checkpoint_every_s,
        leave_margin_s=wish.leave_margin_s,
        about={
            "data": list(wish.data) or f"the text of {teacher.run.uri}",
            "teacher": teacher.ref,
            "teacher_checkpoint": teacher.checkpoint,
        },
    )


def _weights(shape: GPTConfig) -> int:
    return 12 * shape.n_layer * shape.n_embd**2


def _same_teacher(folder: ObjectStore, teacher: _Teacher) -> None:
    found = newest_manifest(folder)
    before = found.about["config"]["user"].get("teacher") if found else teacher.ref
    if before != teacher.ref:
        raise ValueError(
            f"{folder.uri} began with {before or 'no teacher'}, not {teacher.ref}: give what it "
            "began with, or a new --run"
        )


def _published(wish: Distillation, teacher: _Teacher, checkpoint: str, say: Say) -> dict[str, Any]:
    """The version that has the student, and its table; nothing where there is no name for it."""
    if teacher.version is None and not (wish.name and wish.store):
        say("not published: the teacher is a checkpoint; give --name and --store to publish both")
        return {}
    registry = ModelRegistry.open(wish.store)
    version = teacher.version or publish_checkpoint(
        registry, teacher.checkpoint, name=wish.name, say=say
    )
    text = held_out(teacher.run) or held_out(ObjectStore.open(checkpoint.rpartition("@")[0]))
    made = publish_student(
        registry,
        version.ref,
        checkpoint,
        name=wish.variant,
        schemes=wish.also,
        text=None if text is None else text[0],
        threads=wish.threads or None,
        say=say,
    )
    table = {
        v.name: {"bytes": v.size_bytes, **v.measured.model_dump(exclude={"host", "escalation"})}
        for v in made.variants
        if v.measured
    }
    return {"version": made.ref, "variants": table}
