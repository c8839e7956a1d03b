"""Trials: a candidate beside production, on some of its traffic, until it is promoted or sent back.

    trials = models.trials("gpt")                       # beside gpt@production
    trial = trials.begin("gpt@2", weight=0.1, why="trained longer")
    trials.running()                                    # what replicas ask
    trials.end(trial, "rolled back", why="it errs")     # by whoever decides; the first one wins

    models/gpt/trials/production/000000000001.json      # begun
    models/gpt/trials/production/000000000001.end       # ended: how, why, by which figures

Both objects are written by one PUT *if absent*, so there is one trial at a time and it has one end.
Replicas that follow the alias (rayburst.serve.follow) look here; the judge is judge.py.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field

from rayburst.errors import (
    ObjectExistsError,
    VersionConflictError,
    VersionError,
    VersionNotFoundError,
)
from rayburst.models.judge import Limits
from rayburst.models.manifest import decode, encode
from rayburst.models.moves import PRODUCTION

if TYPE_CHECKING:
    from rayburst.models.registry import ModelRegistry

__all__ = ["Ending", "Outcome", "Trial", "Trials"]

Outcome = Literal["promoted", "rolled back", "withdrawn"]


class Trial(BaseModel):
    """`version` is tried beside what the alias points to.

    `weight` is the share of requests that it answers; with `shadow` it also computes, after
    the answer is sent, what production answered. `limits` is what it must keep.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    number: int = Field(ge=1)
    version: int = Field(ge=1)
    weight: float = Field(ge=0, le=1)
    shadow: bool
    limits: Limits
    why: str = ""
    at_ms: int
    id: str


class Ending(BaseModel):
    """How a trial ended; `figures` are the judge's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    outcome: Outcome
    why: str
    figures: dict[str, float]
    at_ms: int
    id: str


class Trials:
    """Of one alias of one model. Make it with `models.trials(name)`."""

    def __init__(self, models: ModelRegistry, name: str, alias: str = PRODUCTION) -> None:
        self.name, self.alias = name, alias
        self._models = models
        self._folder = models.folder(name)
        models.last_move(name, alias)  # says what is wrong with the alias

    def begin(
        self,
        ref: str,
        *,
        weight: float = 0.0,
        shadow: bool = True,
        limits: Limits | None = None,
        why: str = "",
    ) -> Trial:
        """Try a version, after every byte of it was proven.

        Raises:
            VersionNotFoundError, VersionDamagedError: it cannot be tried.
            VersionError: the alias points nowhere or to this version, or nothing is asked of it.
            VersionConflictError: another trial runs.
        """
        if not 0 <= weight <= 1 or (weight == 0 and not shadow):
            raise VersionError(
                f"weight={weight:g}, shadow={shadow}: give a weight from 0 to 1, the share of "
                "requests that the candidate answers, and shadow where it is 0"
            )
        version = self._models.verify(ref)
        if version.name != self.name:
            raise VersionError(f"{version.ref} is no version of {self.name}")
        production = self._models.get(f"{self.name}@{self.alias}")
        if production.version == version.version:
            raise VersionError(f"{version.ref} is {self.name}@{self.alias} already: name another")
        last = self.last()
        if last and (running := self._running(last)):
            raise VersionConflictError(
                f"{self.name}@{running.version} is tried already (trial {running.number}): one at "
                f"a time. End it: rayburst models withdraw {self.name}"
            )
        trial = Trial(
            number=last + 1,
            version=version.version,
            weight=weight,
            shadow=shadow,
            limits=limits or Limits(),
            why=why,
            at_ms=self._models.now_ms(),
            id=secrets.token_hex(8),
        )
        key = self._key(trial.number)
        try:
            self._folder.put(key, encode(trial), if_absent=True)
        except ObjectExistsError:
            if self._read(trial.number).id != trial.id:
                raise VersionConflictError(
                    f"somebody began another trial of {self.name} meanwhile: "
                    f"rayburst models show {self.name}"
                ) from None
        return trial

    def running(self) -> Trial | None:
        """The trial that has not ended."""
        last = self.last()
        return self._running(last) if last else None

    def after(self, number: int) -> Trial | None:
        """The trial that follows number `number`, whether it has ended or not: one request."""
        return self._read(number + 1) if self._folder.exists(self._key(number + 1)) else None

    def ending(self, trial: Trial) -> Ending | None:
        """How it ended; None while it runs."""
        key = self._key(trial.number, "end")
        if not self._folder.exists(key):
            return None
        return decode(Ending, f"{self._folder.uri}/{key}", self._folder.get(key))

    def end(
        self, trial: Trial, outcome: Outcome, *, why: str, figures: dict[str, float] | None = None
    ) -> Ending:
        """End it; how it ended, which is another's word when that came first.

        "promoted" moves the alias first: who is killed between the two leaves a trial of what is
        production, and that counts as ended.
        """
        if (ended := self.ending(trial)) is not None:
            return ended
        if outcome == "promoted":
            self._models.promote(f"{self.name}@{trial.version}", alias=self.alias, why=why)
        ending = Ending(
            outcome=outcome,
            why=why,
            figures=figures or {},
            at_ms=self._models.now_ms(),
            id=secrets.token_hex(8),
        )
        key = self._key(trial.number, "end")
        try:
            self._folder.put(key, encode(ending), if_absent=True)
        except ObjectExistsError:
            return decode(Ending, f"{self._folder.uri}/{key}", self._folder.get(key))
        return ending

    def history(self) -> list[tuple[Trial, Ending | None]]:
        """Every trial, the oldest first, and how it ended."""
        found = [self._read(number) for number in range(1, self.last() + 1)]
        return [(trial, self.ending(trial)) for trial in found]

    def _running(self, last: int) -> Trial | None:
        trial = self._read(last)
        if self.ending(trial) is not None:
            return None
        try:
            production = self._models.get(f"{self.name}@{self.alias}").version
        except VersionNotFoundError:
            return trial
        if production == trial.version:
            self.end(trial, "promoted", why=f"it is {self.alias}")
            return None
        return trial

    def last(self) -> int:
        """Number of the newest trial; 0 while there was none."""
        prefix = f"trials/{self.alias}"
        names = (item.key.removeprefix(f"{prefix}/") for item in self._folder.list(prefix))
        return max((int(n[:12]) for n in names if n[:12].isdecimal()), default=0)

    def _read(self, number: int) -> Trial:
        key = self._key(number)
        return decode(Trial, f"{self._folder.uri}/{key}", self._folder.get(key))

    def _key(self, number: int, kind: str = "json") -> str:
        return f"trials/{self.alias}/{number:012}.{kind}"
