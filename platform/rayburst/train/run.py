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

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.optim.lr_scheduler import LRScheduler

from rayburst.errors import TrainError
from rayburst.train import versions
from rayburst.train.course import At, Course
from rayburst.train.engines import Engine, Part
from rayburst.train.entry import Entry, Standing
from rayburst.train.feed import Feed, seed_everything
from rayburst.train.hardware import be_deterministic, hardware_class, this_device
from rayburst.train.joining import Joining
from rayburst.train.laid_out import Batch, LaidOut, Looped, MakeOptimizer, MakeSchedule
from rayburst.train.left_out import LeftOut
from rayburst.train.lone_keeper import keeper_of
from rayburst.train.machines import machines_of_everyone
from rayburst.train.order import Order, order_of, seed_of
from rayburst.train.parallel.fit import Node
from rayburst.train.parallel.parallel import ParallelOptions
from rayburst.train.parallel.plan import Plan
from rayburst.train.prepared import Prepared
from rayburst.train.run_options import RunOptions
from rayburst.train.run_report import RunReport, run_report
from rayburst.train.runlog import RunLog, read_folder
from rayburst.train.spread import Shard, Spread
from rayburst.train.surroundings import NoticeSource, Surroundings, find_surroundings
from rayburst.train.turn import Turn

__all__ = ["Run", "RunOptions", "start_run"]

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
        threads = options.threads or (1 if options.mode == "exact" else where.place.threads)
        if threads:
            torch.set_num_threads(threads)
        if options.mode == "exact":
            be_deterministic()
        self._log = RunLog(where.folder, rank=where.rank, world=where.world, clock=clock)
        self._keeper = keeper_of(where, self._log, options, clock)
        self._standing = Standing()
        self._turn = Turn(batch=range(0), began_s=clock())
        self._joining = Joining(where, self._log, clock=clock, began_s=self._turn.began_s)
        self._prepared: Prepared | None = None
        self._engine: Engine | None = None
        self._is_stopping, self._is_over = False, False
        self._left_out = LeftOut(options.on_nonfinite, self._log)

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
    def _at(self) -> At:
        return self._standing.at

    @property
    def metrics(self) -> Metrics:
        """What `measure` gave last, in this process or before it."""
        return self._standing.metrics

    def prepare(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *schedulers: LRScheduler,
        clip_norm: float | None = None,
        shard: Shard | None = None,
        **extras: Any,
    ) -> nn.Module:
        """The model to call in the loop, on this worker's device.

        `schedulers` are stepped after each step of the run. `shard(model)` spreads a whole model
        over the ranks, with torch's `fully_shard`; it is called for each group of workers, with a
        model that has the same parts. `extras`: other objects with `state_dict` and
        `load_state_dict` whose state belongs to the run.
        """
        membership = self._where.membership
        if membership.is_in_place and (shard is not None or isinstance(model, FSDPModule)):
            if shard is None:
                membership.decline()  # it was cut for one group
            membership.saves_first()
            self._keeper.close()
            self._keeper = keeper_of(
                self._where, self._log, self.options, self._clock, is_spread=True
            )
        model.to(this_device())
        spread = Spread(model, optimizer, shard) if shard is not None else None
        self._prepared = Prepared(
            model, optimizer, schedulers, clip_norm=clip_norm, extras=extras, spread=spread
        )
        if not membership.is_in_place:  # else the group meets when all are ready to train
            self._prepared.cut()
            self._build_engine()
        return self._prepared.wrapped

    def lay_out(
        self,
        model: nn.Module,
        options: ParallelOptions,
        make_optimizer: MakeOptimizer,
        *make_schedules: MakeSchedule,
        plan: Plan | None = None,
        **extras: Any,
    ) -> Looped:
        """In place of `prepare`, for a model in a layout; `run.backward(model(inputs, targets))`.

        `options.layout` says how large tensor, pipeline and shard groups are; copies follow the
        workers that there are. After a loss the group goes on as the largest whole mesh, from the
        checkpoint of the layout before. `plan`: how a model that is not the built-in GPT is cut.
        """
        self._stay_as_one_group()
        makes, place = (make_optimizer, make_schedules), self._where.place
        laid_out = LaidOut(model, options, *makes, place=place, plan=plan, extras=extras)
        self._prepared = laid_out
        self._log.write("layout", step=self._at.step, **laid_out.words)
        self._build_engine()
        return laid_out.looped

    def machines(self, *, memory_bytes: int | None = None) -> list[Node]:
        """The nodes of the workers, for `rayburst.train.plan_layout`; before `lay_out`, by all.

        `memory_bytes`: of each device, where it is not all that the GPU has, or of a node without
        GPUs this worker's share.
        """
        self._stay_as_one_group()
        return machines_of_everyone(self._where.place, memory_bytes)

    def _stay_as_one_group(self) -> None:
        """A layout is for one group: when that changes, it starts again."""
        if self._where.membership.is_in_place:
            self._where.membership.decline()
            self._keeper.close()
            self._keeper = keeper_of(self._where, self._log, self.options, self._clock)

    def _build_engine(self) -> None:
        """For the group as it is."""
        prepared = self._given()
        engine = prepared.engine(self.options, rank=self.rank, world=self.world)
        self._engine = engine
        prepared.wrapped.go_through(partial(self._forward, engine.module))

    def _forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """It may talk to peers; what comes out of a step that broke is not used."""
        if not self._turn.broken:
            with self._trying():
                return module(*args, **kwargs)
        return self._given().stand_in()(*args, **kwargs)

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
        prepared = self._given()
        order = order_of(dataset, global_batch=global_batch, seed=seed, epochs=epochs, steps=steps)
        course = self._course(order, dataset)
        if not self._start(course):
            return

        def upcoming(position: int) -> Iterator[Part]:
            _, engine = self._needed()
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
        if not self._is_over:
            self._end(course)

    def backward(self, loss: Tensor | Batch) -> None:
        """Backward pass of `loss`, the mean over the samples of the batch that was given."""
        _, engine = self._needed()
        part = self._turn.part
        if part is None or self._turn.is_ready:
            raise TrainError("run.backward(loss) belongs once into each turn of run.batches()")
        if part.is_last:
            self._turn.own_s = self._clock() - self._turn.began_s
        if not self._turn.broken:
            with self._trying():
                engine.backward(loss, part)
        self._turn.is_ready = True

    def step(self) -> bool:
        """After `backward`, in each turn. True when a step of the run was done with it."""
        turn = self._turn
        part = turn.part
        if part is None or not turn.is_ready:
            raise TrainError("run.step() without run.backward(loss) before it in this turn")
        turn.part = None
        if part.is_last and not turn.broken:
            self._finish_step()
        return turn.is_done

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

    def _given(self) -> Prepared:
        if self._prepared is None:
            raise TrainError("call model = run.prepare(model, optimizer) first")
        return self._prepared

    def _needed(self) -> tuple[Prepared, Engine]:
        prepared = self._given()
        if self._engine is None:
            raise TrainError("run.backward and run.step belong into the loop over run.batches()")
        return prepared, self._engine

    @contextmanager
    def _trying(self) -> Iterator[None]:
        """Around what talks to other ranks: the loss of one ends the step and not the run."""
        with self._where.membership.attempt() as attempt:
            yield
        self._turn.broken = self._turn.broken or attempt.broken

    def _course(self, order: Order, dataset: Any) -> Course:
        return Course(
            order=order,
            fingerprint=str(getattr(dataset, "fingerprint", "")),
            tokens_per_step=order.global_batch * getattr(dataset, "tokens_per_sample", 0),
            options=self.options,
            hardware=hardware_class(self._given().device),
            config=self._config,
            versions=versions.recorded(),
        )

    def _start(self, course: Course) -> bool:
        """Take up what there is of the run. False when this rank has no place in the group."""
        if self._where.membership.is_in_place:
            return self._meet(course)
        self._joining.begin(self._entry(course))
        return True

    def _meet(self, course: Course) -> bool:
        """In place: a new place in the group, and its state. False: this rank is to return."""
        self._engine = None
        change = self._joining.meet(self._entry(course), then=self._build_engine)
        if change.place is None:
            self._close()
            return False
        if change.leaves:
            self._leave(course, change.reason)
        return True

    def _entry(self, course: Course) -> Entry:
        return Entry(
            where=self._where,
            course=course,
            prepared=self._given(),
            keeper=self._keeper,
            standing=self._standing,
            is_exact=self.options.mode == "exact",
            clock=self._clock,
        )

    def _steps(self, course: Course, feed: Feed) -> Iterator[Any]:
        while course.goes_on(self._at) and not self._is_stopping:
            _, engine = self._needed()
            batch = course.order.batch(self._at.samples)
            turn = self._turn = Turn(batch=batch, began_s=self._clock())
            with self._trying():
                self._where.membership.begin(
                    wants_checkpoint=self._keeper.wants(), stopped_s=self._joining.stopped_s
                )
            parts = engine.parts(batch)
            for part in parts:
                if turn.broken:
                    break
                asked_s = self._clock()
                samples = feed.take(part)
                turn.waited_s += self._clock() - asked_s
                engine.before(part)
                seed_everything(seed_of(course.order.seed, self._at.step, part.lane))
                turn.part, turn.is_ready = part, False
                yield samples
                if turn.part is not None:
                    raise TrainError("a turn of run.batches() ended without run.step()")
            if not parts and not turn.broken:  # more workers than shards
                self._finish_step()
            with self._trying():
                self._between_steps(course)
            is_through = not course.goes_on(self._at) or self._is_stopping
            changes = turn.verdict is not None and turn.verdict.change and not is_through
            if turn.broken or changes:
                if turn.broken:
                    self._log.write("broken", step=self._at.step, error=turn.broken)
                if not self._meet(course):
                    return
                feed.begin(self._at.samples)

    def _finish_step(self) -> None:
        with self._trying():
            self._take_step()
        turn = self._turn
        if turn.is_done:
            self._log.write(
                "step",
                step=self._at.step,
                loss=turn.loss if math.isfinite(turn.loss) else None,
                samples=len(turn.batch),
                duration_s=self._clock() - turn.began_s,
                wait_s=turn.waited_s,
                own_s=turn.own_s,
            )

    def _take_step(self) -> None:
        prepared, engine = self._needed()
        at, turn, membership = self._at, self._turn, self._where.membership
        turn.loss = engine.finish()
        membership.confirm()
        norm = prepared.gradient_norm()
        if math.isfinite(norm):
            prepared.learn(norm)
            self._left_out.end()
        else:
            at.left_out += 1
            self._left_out.add(at.step, turn.batch, turn.loss, warns=self.rank == 0)
        prepared.next_step()
        engine.release()
        # the state holds the step from here on, whatever becomes of the group
        at.step += 1
        at.samples = turn.batch.stop
        turn.is_done = True
        turn.verdict = membership.end()

    def _between_steps(self, course: Course) -> None:
        at, turn = self._at, self._turn
        if turn.broken:
            return
        self._keeper.poll()
        verdict = turn.verdict
        self._joining.tell_step(at.step, turn.loss, self._standing.metrics, self._keeper, verdict)
        if verdict is None or not course.goes_on(at) or self._is_stopping:
            return
        if verdict.leave:
            self._leave(course, self._where.membership.reason)
        elif verdict.checkpoint and not verdict.change:
            saving = self._saving(course, self._clock())
            if not self._keeper.snapshots(**saving):
                saving["metrics"] = self._standing.metrics = dict(self._measure(False))
                self._keeper.save(**saving)
        elif verdict.change and self._given().spread is not None:
            self._keeper.save(**self._saving(course, self._clock()), wait=True)

    def _leave(self, course: Course, reason: str) -> None:
        self._joining.tell_leaving(reason)
        if self._at.step != self._standing.loaded_step:
            self._keeper.save(**self._saving(course, self._clock()), wait=True)
        self._log.write("leave", step=self._at.step, reason=reason)
        self._close()
        self._where.leave(f"{reason}; step {self._at.step} was the last with {self.world}")

    def _end(self, course: Course) -> None:
        """The last checkpoint, unless an earlier process of this run came to the end."""
        if self._at.step > self._joining.resumed_from:
            began_s = self._clock()
            self._standing.metrics = dict(self._measure(True))
            self._keeper.save_surely(**self._saving(course, began_s))
            prepared, _ = self._needed()
            weights = prepared.digest()
            self._log.write("end", step=self._at.step, weights=weights, **self._standing.metrics)
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
            "metrics": self._standing.metrics,
            "began_s": began_s,
        }

    def _close(self) -> None:
        self._is_over = True
        self._keeper.close()
        self._log.close()
