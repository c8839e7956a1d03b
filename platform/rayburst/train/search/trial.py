"""A trial as its training function sees it: it resumes by itself and tells what it measured.

    def train(settings, trial):
        run = trial.start_run()
        ...                                             # model, optimizer, run.prepare
        for inputs, targets in run.batches(data, global_batch=32, steps=trial.steps):
            run.backward(loss_of(model, inputs, targets))
            if run.step():
                trial.reached(run.steps_done, lambda: validation_loss(model))

One process. What interrupts it costs what was trained since its newest checkpoint. It knows no Ray
and no other trial: `tell` carries what it says.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from rayburst.train.run import Run, RunOptions, start_run
from rayburst.train.search.journal import Journal
from rayburst.train.search.settings import Search
from rayburst.train.surroundings import NoticeSource

__all__ = ["Trial"]

_TELL_EVERY_S = 2.0
Tell = Callable[[dict[str, float]], None]


class Trial:
    """Trial number `number` of a search."""

    def __init__(
        self,
        search: Search,
        number: int,
        *,
        journal: Journal,
        tell: Tell,
        notices: NoticeSource | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.number, self.steps = number, search.rungs.steps
        self._search, self._journal, self._notices = search, journal, notices
        self._tell, self._clock = tell, clock
        self._told_s = clock()
        self._known: dict[int, float] = {}

    @property
    def folder(self) -> str:
        """Where its checkpoints and its run log are."""
        return f"{self._search.folder}/trials/{self.number:05d}"

    def start_run(self, *, config: Mapping[str, Any] | None = None) -> Run:
        """The run of this trial; `config` is JSON that every checkpoint carries along."""
        self.tell_again()
        options = RunOptions(
            threads=self._search.cpus,
            checkpoint_every_s=self._search.checkpoint_every_s,
            checkpoints_kept=1,
            leave_margin_s=4.0,
        )
        return start_run(options, storage=self.folder, config=config, notices=self._notices)

    def tell_again(self) -> None:
        """What was measured before this process began."""
        self._known = self._journal.of_trial(self.number)
        for step, value in sorted(self._known.items()):
            self._tell({"step": step, "value": value})

    def reached(self, step: int, measure: Callable[[], float]) -> None:
        """After each step; `measure` is called where trials are compared. Lower is better."""
        if step in self._search.rungs.milestones and step not in self._known:
            value = float(measure())
            self._known[step] = self._journal.add(trial=self.number, step=step, value=value)
            self._say(step, self._known[step])
        elif self._clock() - self._told_s >= _TELL_EVERY_S:
            self._say(step, None)

    def diverged(self) -> None:
        """Its loss is not a number: the worst value wherever it would still be compared."""
        for step in self._search.rungs.milestones:
            if step not in self._known:
                self._journal.add(trial=self.number, step=step, value=math.inf)
                self._say(step, math.inf)
        self.ended()

    def ended(self) -> None:
        """The training function is through; there is nothing to resume."""
        self._journal.end(self.number)

    def _say(self, step: int, value: float | None) -> None:
        self._told_s = self._clock()
        self._tell({"step": step} if value is None else {"step": step, "value": value})
