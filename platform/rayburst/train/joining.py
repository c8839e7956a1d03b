"""A rank takes its place in a group, at the start of a run and whenever its members change.

`rayburst.train.entry` gives it state; what is here tells the run log, and from rank 0 the driver,
where the run goes on. It knows no data and no steps of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rayburst.train.entry import Entry
from rayburst.train.membership import Change
from rayburst.train.notices import Verdict
from rayburst.train.runlog import RunLog
from rayburst.train.surroundings import Surroundings
from rayburst.train.teller import Costs, Teller

__all__ = ["Joining"]


class Joining:
    """Of one rank, over all groups that it is in. `resumed_from`: the step its first began with."""

    def __init__(
        self, where: Surroundings, log: RunLog, *, clock: Callable[[], float], began_s: float
    ) -> None:
        self._where, self._log, self._clock, self._began_s = where, log, clock, began_s
        self._teller: Teller | None = None
        self.resumed_from = 0

    def begin(self, entry: Entry) -> None:
        """Into a group that somebody else has made."""
        entry.begin()
        self._say_where(entry, "start")

    def meet(self, entry: Entry, *, then: Callable[[], None]) -> Change:
        """In place: a new place in the group, and its state. With `place` None: no place."""
        standing = entry.standing
        kind = "change" if standing.has_state else "start"
        change = entry.meet(then=then)
        if change.place is None:
            words = {"host": self._where.place.host, "reason": change.reason}
            self._log.write("depart", step=standing.at.step, **words)
        else:
            self._say_where(entry, kind, generation=change.generation, reason=change.reason)
        return change

    @property
    def stopped_s(self) -> float:
        """How long this group's making stopped this rank; 0.0 as long as it has not seen it."""
        return self._teller.seen_stop_s if self._teller is not None else 0.0

    def tell_step(
        self,
        step: int,
        loss: float,
        metrics: Mapping[str, Any],
        costs: Costs,
        verdict: Verdict | None,
    ) -> None:
        """A step was done, with what all ranks have told."""
        if self._teller is not None:
            stopped_s = verdict.stopped_s if verdict is not None else 0.0
            self._teller.step(step, loss, metrics, costs, stopped_s=stopped_s)

    def tell_leaving(self, reason: str) -> None:
        """The group saves and leaves."""
        if self._teller is not None:
            self._teller.tell(f"saving and leaving: {reason}")

    def _say_where(self, entry: Entry, kind: str, **words: Any) -> None:
        """A new group trains from here on."""
        place, step, course = self._where.place, entry.standing.at.step, entry.course
        if kind == "start":
            self.resumed_from = step
            words["began"] = self._began_s
        self._log.move(rank=place.rank, world=place.world)
        self._log.write(kind, step=step, **place.words, **words)
        self._teller = Teller(
            self._where.publish if place.rank == 0 else lambda progress: None,
            world=place.world,
            resumed_from=step,
            steps=course.steps,
            tokens_per_step=course.tokens_per_step,
            clock=self._clock,
            before=self._teller,
        )
