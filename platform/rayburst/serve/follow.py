"""A replica that stays at what an alias points to, and holds the candidate of its trial.

    follower = Follower(models, parse_ref("gpt@production"), load)
    follower.lineup.turn(request_id)
    follower.start()                    # looks once a second, in a thread of its own

A look costs two HEAD requests, three while a trial runs: moves and trials are numbered, so the
next one is there or it is not. What is to be loaded is loaded and proven beside what answers, and
takes its place between two requests; those under way end with the model that they began with. What
cannot be loaded is told (`problem`), tried again at the next look, and what answered goes on.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from rayburst.errors import RayburstError, VariantError, VersionError
from rayburst.models.moves import Ref
from rayburst.models.registry import ModelRegistry
from rayburst.models.trials import Trial, Trials
from rayburst.serve.lineup import Lineup

__all__ = ["Follower", "Loadable"]

_log = logging.getLogger("ray.serve")


class Loadable(Protocol):
    """A model that is loaded."""

    @property
    def label(self) -> str:
        """Its version: `gpt@3`."""

    def close(self) -> None:
        """Frees what it holds."""


M = TypeVar("M", bound=Loadable)


class Follower(Generic[M]):
    """`load` gives a version, proven and ready; it may raise RayburstError."""

    def __init__(
        self,
        models: ModelRegistry,
        ref: Ref,
        load: Callable[[str], M],
        *,
        poll_s: float = 1.0,
    ) -> None:
        if ref.alias is None:
            raise ValueError(f"{ref.name}@{ref.version} never moves: there is nothing to follow")
        self._models, self._load, self._poll_s = models, load, poll_s
        self._name, self._alias = ref.name, ref.alias
        last = models.last_move(ref.name, ref.alias)
        self.lineup = Lineup(load(models.get(f"{ref.name}@{ref.alias}").ref))
        self._move = last.number if last else 0
        self._trials = Trials(models, ref.name, ref.alias)
        self._trial = max(0, (self._trials.last()) - 1)  # the last one may run
        self._waiting: Trial | None = None
        self.problem: str | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="follow", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._stop.set()
        self._thread.join()

    def look(self) -> None:
        """Look once, and do what is to be done. RayburstError: it is to be tried again."""
        self._follow_moves()
        self._follow_trials()
        for model in self.lineup.retired():
            model.close()

    def _run(self) -> None:
        while not self._stop.wait(self._poll_s):
            try:
                self.look()
                self.problem = None
            except RayburstError as error:
                if str(error) != self.problem:
                    _log.warning("%s@%s cannot be followed: %s", self._name, self._alias, error)
                self.problem = str(error)
            except Exception as error:  # noqa: BLE001  # a fault of ours may not end the thread unseen
                _log.exception("following %s@%s failed", self._name, self._alias)
                self.problem = f"{type(error).__name__}: {error}"

    def _follow_moves(self) -> None:
        newest = None
        number = self._move
        while (move := self._models.move_after(self._name, self._alias, number)) is not None:
            newest, number = move, move.number
        if newest is None:
            return
        ref = f"{self._name}@{newest.version}"
        trial = self.lineup.trial
        if self.lineup.production.label == ref:
            pass
        elif trial is not None and trial.version == newest.version:
            self.lineup.adopt()
        else:
            self.lineup.replace(self._load(self._models.moved_to(self._name, newest).ref))
        self._move = number
        _log.info("%s@%s is %s now (move %d)", self._name, self._alias, ref, number)

    def _follow_trials(self) -> None:
        running = self.lineup.trial or self._waiting
        if running is not None and self._trials.ending(running) is not None:
            self.lineup.end_trial()
            self._waiting = running = None
        while running is None and (trial := self._trials.after(self._trial)) is not None:
            self._trial = trial.number
            if self._trials.ending(trial) is None:
                running = self._waiting = trial
        if self._waiting is None:
            return
        trial = self._waiting
        if self.lineup.production.label == f"{self._name}@{trial.version}":
            return  # it was promoted; whoever decided is about to write that down
        try:
            model = self._load(f"{self._name}@{trial.version}")
        except (VersionError, VariantError) as error:
            self._trials.end(trial, "rolled back", why=f"it cannot be loaded: {error}")
            return
        self.lineup.try_out(model, trial)
        self._waiting = None
        _log.info("%s@%d is tried beside production", self._name, trial.version)
