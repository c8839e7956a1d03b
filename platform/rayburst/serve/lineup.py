"""Which of the models that a replica holds answers a request: production, or a candidate on trial.

    lineup = Lineup(model)
    with lineup.turn(request_id) as turn:       # it stays loaded while the turn lasts
        answer = await turn.model.generate(...)
    lineup.replace(newer)                       # from the next turn on; turns that run end with it
    for model in lineup.retired():              # nobody uses these any more
        model.close()

From any thread. Deliberately knows no registry and no torch.
"""

from __future__ import annotations

import random
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from rayburst.models.trials import Trial

__all__ = ["Lineup", "Turn"]

M = TypeVar("M")


@dataclass(eq=False, slots=True)
class _Held(Generic[M]):
    """A loaded model and how many use it."""

    model: M
    users: int = 0


@dataclass(eq=False, slots=True)
class Turn(Generic[M]):
    """One request: `model` answers it. `trial` is set where that is a candidate."""

    model: M
    production: M
    trial: Trial | None = None

    def fall_back(self) -> M:
        """Production answers in the candidate's place."""
        self.model, self.trial = self.production, None
        return self.model


@dataclass(eq=False, slots=True)
class Both(Generic[M]):
    """Production and its candidate, held for a comparison."""

    production: M
    candidate: M
    trial: Trial


@dataclass(slots=True)
class Lineup(Generic[M]):
    """Begins with production alone."""

    first: M
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _candidate: _Held[M] | None = None
    _trial: Trial | None = None
    _gone: list[_Held[M]] = field(default_factory=list)
    _production: _Held[M] = field(init=False)

    def __post_init__(self) -> None:
        self._production = _Held(self.first)

    @property
    def production(self) -> M:
        """What answers where no trial runs."""
        return self._production.model

    @property
    def trial(self) -> Trial | None:
        """The trial whose candidate is loaded."""
        return self._trial

    @contextmanager
    def turn(self, request_id: str = "") -> Iterator[Turn[M]]:
        """Who answers. The same id gives the same choice while the trial runs; none draws lots."""
        with self._lock:
            main, candidate, trial = self._production, self._candidate, self._trial
            is_tried = trial is not None and _lot(request_id) < trial.weight
            held = [main, candidate] if is_tried and candidate is not None else [main]
            for one in held:
                one.users += 1
        try:
            tried = trial if len(held) > 1 else None
            yield Turn(model=held[-1].model, production=main.model, trial=tried)
        finally:
            self._release(held)

    @contextmanager
    def both(self) -> Iterator[Both[M] | None]:
        """Production and the candidate, to be compared; None where no trial runs."""
        with self._lock:
            main, candidate, trial = self._production, self._candidate, self._trial
            held = [] if candidate is None or trial is None else [main, candidate]
            for one in held:
                one.users += 1
        try:
            if candidate is None or trial is None:
                yield None
            else:
                yield Both(main.model, candidate.model, trial)
        finally:
            self._release(held)

    def replace(self, model: M) -> None:
        """`model` is production from now on."""
        with self._lock:
            self._gone.append(self._production)
            self._production = _Held(model)

    def adopt(self) -> None:
        """The candidate is production from now on, and its trial is over."""
        with self._lock:
            if self._candidate is None:
                raise RuntimeError("there is no candidate to adopt")
            self._gone.append(self._production)
            self._production, self._candidate, self._trial = self._candidate, None, None

    def try_out(self, model: M, trial: Trial) -> None:
        """`model` is the candidate of `trial` from now on."""
        with self._lock:
            self._drop()
            self._candidate, self._trial = _Held(model), trial

    def end_trial(self) -> None:
        """Production answers everything again."""
        with self._lock:
            self._drop()

    def retired(self) -> list[M]:
        """Models that were replaced and that nobody uses now: close them. Each is given once."""
        with self._lock:
            free = [held for held in self._gone if held.users == 0]
            self._gone = [held for held in self._gone if held.users > 0]
        return [held.model for held in free]

    def _drop(self) -> None:
        if self._candidate is not None:
            self._gone.append(self._candidate)
        self._candidate = self._trial = None

    def _release(self, held: list[_Held[M]]) -> None:
        with self._lock:
            for one in held:
                one.users -= 1


def _lot(request_id: str) -> float:
    """A number in [0, 1), the same for the same id."""
    return zlib.crc32(request_id.encode()) / 2**32 if request_id else random.random()
