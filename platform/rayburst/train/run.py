"""What a training function holds: a plain PyTorch loop becomes a run that no interruption spoils.

    run = start_run()                                # in a Ray Train worker, torchrun, or alone
    model = run.prepare(model, optimizer, scheduler, clip_norm=1.0)
    for inputs, targets in run.batches(dataset, global_batch=64, seed=0, epochs=3):
        loss = loss_of(model(inputs), targets)            # the mean over the batch that was given
        run.backward(loss)
        run.step()

A turn of the loop is one part of a step: this worker's share of the global batch, or a micro batch
of it, or in exact mode one logical shard. `run.step()` acts after the last part: it clips, steps
optimizer and schedulers and clears the gradients, so the loop has no `zero_grad()`. Checkpoints,
resuming in the middle of an epoch, leaving before a node goes: all of it happens inside `batches`.

The order of the samples and all random numbers are functions of (seed, position), so none of them
are lost with a process: before each part Python's, numpy's and torch's generators are seeded anew.
"""

from __future__ import annotations

import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from rayburst.errors import NonFiniteError, TrainError
from rayburst.train import versions
from rayburst.train.course import At, Course
from rayburst.train.engines import Engine, ExactEngine, FastEngine, Part
from rayburst.train.feed import Feed, seed_everything
from rayburst.train.hardware import check_same, hardware_class
from rayburst.train.keeper import Keeper
from rayburst.train.notices import Verdict
from rayburst.train.order import Order, seed_of
from rayburst.train.prepared import Prepared
from rayburst.train.run_options import RunOptions
from rayburst.train.run_report import RunReport, run_report
from rayburst.train.runlog import RunLog, read_folder
from rayburst.train.stays import Stays
from rayburst.train.surroundings import NoticeSource, Surroundings, find_surroundings
from rayburst.train.teller import Teller

__all__ = ["Run", "RunOptions", "start_run"]

_SKIPS_IN_A_ROW = 10
_logger = logging.getLogger(__name__)
Metrics = Mapping[str, float]
Measure = Callable[[bool], Metrics]


def start_run(
    options: RunOptions | None = None,
    *,
    storage: str | None = None,
    config: Mapping[str, Any] | None = None,
    measure: Measure | None = None,
    notices: NoticeSource | None = None,
) -> Run:
    """The run of this process; every rank calls it once, before it makes the model.

    Args:
        storage: the run's folder, outside Ray Train; in a worker it is the trainer's to say.
        config: JSON that every checkpoint carries along, such as the model's shape.
        measure: called on every rank before each checkpoint, with True before the last one; the
            numbers it returns are bound to the checkpoint.
        notices: outside Ray: asked each step whether this process must go.
    """
    options = options or RunOptions()
    where = find_surroundings(storage, notices, options.leave_margin_s)
    return Run(options, where, config=config or {}, measure=measure or (lambda is_last: {}))


@dataclass(slots=True)
class _Turn:
    """The step under way."""

    batch: range
    began_s: float
    waited_s: float = 0.0
    part: Part | None = None
    is_ready: bool = False
    """`backward` was called for the part."""
    loss: float = math.nan
    verdict: Verdict | None = None


class Run:
    """Made by `start_run`. Every rank calls the same methods in the same order."""

    def __init__(
        self,
        options: RunOptions,
        where: Surroundings,
        *,
        config: Mapping[str, Any],
        measure: Measure,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.options, self._where, self._clock = options, where, clock
        self._config, self._measure = dict(config), measure
        threads = options.threads or (1 if options.mode == "exact" else where.threads)
        if threads:
            torch.set_num_threads(threads)
        if options.mode == "exact":
            _be_deterministic()
        self._log = RunLog(where.folder, rank=where.rank, world=where.world, clock=clock)
        self._keeper = Keeper(
            where,
            self._log,
            every_s=options.checkpoint_every_s,
            keep=options.checkpoints_kept,
            clock=clock,
        )
        self._at = At()
        self._resumed_from = 0
        self._turn = _Turn(batch=range(0), began_s=clock())
        self._prepared: Prepared | None = None
        self._engine: Engine | None = None
        self._teller: Teller | None = None
        self._metrics: Metrics = {}
        self._is_stopping = self._is_over = False
        self._left_out_in_a_row = 0

    @property
    def rank(self) -> int:
        """This worker's number, from 0."""
        return self._where.rank

    @property
    def world(self) -> int:
        """How many workers there are."""
        return self._where.world

    @property
    def steps_done(self) -> int:
        """Finished steps of the whole run, those before an interruption included."""
        return self._at.step

    @property
    def metrics(self) -> Metrics:
        """What `measure` gave last, in this process or before it."""
        return self._metrics

    def prepare(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *schedulers: LRScheduler,
        clip_norm: float | None = None,
        **extras: Any,
    ) -> nn.Module:
        """The model to call in the loop, on this worker's device.

        `schedulers` are stepped after each step of the run. `extras`: other objects with
        `state_dict` and `load_state_dict` whose state belongs to the run.
        """
        o, w = self.options, self._where
        model.to(_device())
        self._prepared = Prepared(model, optimizer, schedulers, clip_norm=clip_norm, extras=extras)
        if o.mode == "exact":
            self._engine = ExactEngine(model, rank=w.rank, world=w.world, shards=o.shards)
        else:
            self._engine = FastEngine(model, rank=w.rank, world=w.world, micro_batch=o.micro_batch)
        self._prepared.wrapped.go_through(self._engine.module)
        return self._prepared.wrapped

    def batches(
        self,
        dataset: Any,
        *,
        global_batch: int,
        seed: int = 0,
        epochs: int | None = None,
        steps: int | None = None,
        workers: int = 0,
        collate: Callable[[list[Any]], Any] | None = None,
    ) -> Iterator[Any]:
        """This worker's parts of every global batch that is left, after resuming.

        `dataset`: map-style (`len`, `[i]`), or a `rayburst.train.feed.Samples`. `global_batch`:
        samples a step over all workers. `epochs` or `steps` say where the run ends. `workers`:
        processes that fetch samples, as in DataLoader; `collate` makes a batch of them.
        """
        if (epochs is None) == (steps is None):
            raise ValueError("batches(): give the end of the run, either epochs=... or steps=...")
        prepared, engine = self._needed()
        limit = epochs * len(dataset) if epochs is not None else (steps or 0) * global_batch
        order = Order(
            samples=len(dataset),
            global_batch=global_batch,
            seed=seed,
            limit=limit,
            arrange=getattr(dataset, "arrange", None),
        )
        course = self._course(order, dataset)
        self._resume(course)
        self._teller = self._made_teller(order, dataset)

        def upcoming(position: int) -> Iterator[Part]:
            while len(batch := order.batch(position)):
                yield from engine.parts(batch)
                position = batch.stop

        feed = Feed(
            dataset,
            order,
            upcoming=upcoming,
            workers=workers,
            collate=collate,
            pin=prepared.device.type == "cuda",
        )
        with closing(feed):
            feed.begin(self._at.samples)
            yield from self._steps(course, feed)
        self._end(course)

    def backward(self, loss: Tensor) -> None:
        """Backward pass of `loss`, the mean over the samples of the batch that was given."""
        _, engine = self._needed()
        part = self._turn.part
        if part is None or self._turn.is_ready:
            raise TrainError("run.backward(loss) belongs once into each turn of run.batches()")
        engine.backward(loss, part)
        self._turn.is_ready = True

    def step(self) -> bool:
        """After `backward`, in each turn. True when a step of the run was done with it."""
        part = self._turn.part
        if part is None or not self._turn.is_ready:
            raise TrainError("run.step() without run.backward(loss) before it in this turn")
        self._turn.part = None
        if part.is_last:
            self._finish_step()
        return part.is_last

    def log(self, kind: str = "note", **values: Any) -> None:
        """Add JSON values to the run log, beside the step that was done last."""
        self._log.write(kind, step=self._at.step, **values)
        if self._is_over:
            self._log.flush()

    def report(self) -> RunReport:
        """What the run did with its time so far, interruptions included, from its log."""
        self._log.flush()
        return run_report(read_folder(self._where.folder))

    def stop(self) -> None:
        """End the run after this step, with a last checkpoint. Every rank, at the same step."""
        self._is_stopping = True

    def _needed(self) -> tuple[Prepared, Engine]:
        if self._prepared is None or self._engine is None:
            raise TrainError("call model = run.prepare(model, optimizer) first")
        return self._prepared, self._engine

    def _course(self, order: Order, dataset: Any) -> Course:
        prepared, _ = self._needed()
        return Course(
            order=order,
            fingerprint=str(getattr(dataset, "fingerprint", "")),
            options=self.options,
            hardware=hardware_class(prepared.device),
            config=self._config,
            versions=versions.recorded(),
        )

    def _made_teller(self, order: Order, dataset: Any) -> Teller:
        """Once it is known where the run resumes: it says so."""
        return Teller(
            self._where.publish if self.rank == 0 else lambda progress: None,
            world=self.world,
            resumed_from=self._resumed_from,
            steps=-(-(order.limit or 0) // order.global_batch),
            tokens_per_step=order.global_batch * getattr(dataset, "tokens_per_sample", 0),
            clock=self._clock,
        )

    def _resume(self, course: Course) -> None:
        """Take up the newest whole checkpoint, if there is one, and say that training starts."""
        prepared, _ = self._needed()
        if self.options.mode == "exact":
            self._check_hardware(course)
        loaded = self._keeper.load(prepared.state)
        saved = Stays.from_json(loaded.data.get("stays")) if loaded else None
        self._keeper.stays = Stays.begin(saved, hosts=self._hosts(), now_s=self._clock())
        if loaded is not None:
            uri = f"{self._where.folder.uri}@{loaded.step}"
            self._at = course.resume(uri, loaded.data, loaded.config)
            prepared.load(loaded.state)
            self._metrics = loaded.metrics
        self._resumed_from = self._at.step
        w = self._where
        self._log.write(
            "start", step=self._at.step, host=w.host, market=w.market, pool=w.pool, node=w.node
        )

    def _hosts(self) -> dict[str, str]:
        """Every worker's host, and its pool; several on one host count as several."""
        found: dict[str, str] = {}
        for host, pool in self._from_everyone((self._where.host, self._where.pool)):
            several = sum(name.split("#")[0] == host for name in found)
            found[f"{host}#{several}"] = pool
        return found

    def _from_everyone(self, mine: Any) -> list[Any]:
        """What each rank gives, by rank."""
        if self.world == 1:
            return [mine]
        everyone: list[Any] = [None] * self.world
        dist.all_gather_object(everyone, mine)
        return everyone

    def _check_hardware(self, course: Course) -> None:
        for rank, other in enumerate(self._from_everyone(course.hardware)):
            check_same(course.hardware, other, whose=f"rank {rank}")

    def _steps(self, course: Course, feed: Feed) -> Iterator[Any]:
        _, engine = self._needed()
        while course.goes_on(self._at) and not self._is_stopping:
            batch = course.order.batch(self._at.samples)
            turn = self._turn = _Turn(batch=batch, began_s=self._clock())
            self._where.agreement.begin(wants_checkpoint=self._keeper.wants())
            parts = engine.parts(batch)
            for part in parts:
                asked_s = self._clock()
                samples = feed.take(part)
                turn.waited_s += self._clock() - asked_s
                engine.before(part)
                seed_everything(seed_of(course.order.seed, self._at.step, part.lane))
                turn.part, turn.is_ready = part, False
                yield samples
                if turn.part is not None:
                    raise TrainError("a turn of run.batches() ended without run.step()")
            if not parts:  # more workers than shards
                self._finish_step()
            self._between_steps(course)

    def _finish_step(self) -> None:
        prepared, engine = self._needed()
        at, turn = self._at, self._turn
        turn.loss = engine.finish()
        norm = prepared.gradient_norm()
        if math.isfinite(norm):
            prepared.learn(norm)
            self._left_out_in_a_row = 0
        else:
            self._leave_out()
        prepared.next_step()
        engine.release()
        turn.verdict = self._where.agreement.end()
        at.step += 1
        at.samples = turn.batch.stop
        self._log.write(
            "step",
            step=at.step,
            loss=turn.loss if math.isfinite(turn.loss) else None,
            samples=len(turn.batch),
            duration_s=self._clock() - turn.began_s,
            wait_s=turn.waited_s,
        )

    def _leave_out(self) -> None:
        """A gradient that is no number: every rank sees it, none steps with it."""
        at, batch, loss = self._at, self._turn.batch, self._turn.loss
        at.left_out += 1
        self._left_out_in_a_row += 1
        what = (
            f"step {at.step + 1} (samples {batch.start} to {batch.stop - 1} of the run) has a "
            f"gradient that is not finite; loss {loss}"
        )
        self._log.write("nonfinite", step=at.step + 1, loss=str(loss))
        if self.options.on_nonfinite == "stop" or self._left_out_in_a_row > _SKIPS_IN_A_ROW:
            self._log.flush()
        if self.options.on_nonfinite == "stop":
            raise NonFiniteError(
                f"{what}. The weights are those of step {at.step}. Lower the learning rate, clip "
                "(run.prepare(..., clip_norm=1.0)), or leave such steps out with "
                "RunOptions(on_nonfinite='skip')"
            )
        if self._left_out_in_a_row > _SKIPS_IN_A_ROW:
            raise NonFiniteError(f"{what}, and so had the {_SKIPS_IN_A_ROW} steps before it")
        if self.rank == 0:
            _logger.warning("%s: left out", what)

    def _between_steps(self, course: Course) -> None:
        at, turn = self._at, self._turn
        self._keeper.poll()
        if self._teller is not None:
            self._teller.step(at.step, turn.loss, self._metrics, self._keeper.blocked_s)
        verdict = turn.verdict
        if verdict is None or not course.goes_on(at) or self._is_stopping:
            return
        if verdict.leave:
            self._leave(course)
        elif verdict.checkpoint:
            began_s = self._clock()
            self._metrics = dict(self._measure(False))
            self._keeper.save(**self._saving(course, began_s))

    def _leave(self, course: Course) -> None:
        reason = self._where.agreement.reason
        if self._teller is not None:
            self._teller.tell(f"saving and leaving: {reason}")
        self._keeper.save(**self._saving(course, self._clock()), wait=True)
        self._log.write("leave", step=self._at.step, reason=reason)
        self._close()
        self._where.leave(f"{reason}; step {self._at.step} was the last with {self.world}")

    def _end(self, course: Course) -> None:
        """The last checkpoint, unless an earlier process of this run came to the end."""
        if self._at.step > self._resumed_from:
            began_s = self._clock()
            self._metrics = dict(self._measure(True))
            self._keeper.save_surely(**self._saving(course, began_s))
            prepared, _ = self._needed()
            weights = prepared.digest()
            self._log.write("end", step=self._at.step, weights=weights, **self._metrics)
        self._close()

    def _saving(self, course: Course, began_s: float) -> dict[str, Any]:
        prepared, _ = self._needed()
        words = course.words(run=self._where.name, world=self.world)
        return {
            "state": prepared.state(),
            "step": self._at.step,
            "about": {
                "data": {**course.data(self._at), "stays": self._keeper.stays.to_json(began_s)},
                "config": words,
            },
            "metrics": self._metrics,
            "began_s": began_s,
        }

    def _close(self) -> None:
        self._is_over = True
        self._keeper.close()
        self._log.close()


def _device() -> torch.device:
    """This process's GPU, as Ray Train or torchrun deal them out, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if "ray.train" in sys.modules:
        import ray.train.torch

        found: torch.device = ray.train.torch.get_device()
        return found
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def _be_deterministic() -> None:
    """Operations that have no repeatable form raise; the others take it."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # as use_deterministic_algorithms(True), which imports the compiler: seconds at each start
    torch.set_deterministic_debug_mode("error")
    # filling fresh memory would only cost time; torch's type hints do not know the switch
    setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010
    torch.backends.cudnn.benchmark = False
