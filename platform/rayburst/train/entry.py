"""How a rank comes into its group: with the newest checkpoint, or with the state of a peer.

Collective: every rank of the group makes its entry at the same time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rayburst.train.course import At, Course
from rayburst.train.hardware import check_everyone
from rayburst.train.inplace.handover import hand_over
from rayburst.train.keeper import Keeper
from rayburst.train.lone_keeper import LoneKeeper
from rayburst.train.membership import Change
from rayburst.train.prepared import Prepared
from rayburst.train.roll import hosts_of_everyone
from rayburst.train.spread import Spread
from rayburst.train.spread_keeper import SpreadKeeper
from rayburst.train.stays import Stays
from rayburst.train.surroundings import Surroundings

__all__ = ["Entry", "Standing"]


@dataclass(slots=True)
class Standing:
    """Where a rank stands: what it knows of its run beside what was prepared.

    `has_state`: the model holds what `at` says. `loaded_step`: of the checkpoint that it came from.
    `stays`: as the newest checkpoint had them.
    """

    at: At = field(default_factory=At)
    metrics: Mapping[str, float] = field(default_factory=dict)
    has_state: bool = False
    loaded_step: int | None = None
    stays: Stays | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One rank's way in; it leaves what it found in `standing` and in `prepared`."""

    where: Surroundings
    course: Course
    prepared: Prepared
    keeper: Keeper
    standing: Standing
    is_exact: bool
    clock: Callable[[], float]

    def begin(self) -> None:
        """Into a group that somebody else has made."""
        self.where.membership.change(None)
        self._check_hardware()
        self._restore()
        self._watch_stays(self.standing.stays)

    def meet(self, *, then: Callable[[], None]) -> Change:
        """In place: take a new place, its state, and do `then`, until no peer is lost meanwhile.

        The change that was made; with `place` None this rank has no place any more.
        """
        membership = self.where.membership
        while True:
            self.prepared.forget_step()
            standing = self.standing
            is_whole = standing.has_state and self.prepared.spread is None
            change = membership.change(standing.at.step if is_whole else None)
            if change.place is None:
                return change
            with membership.attempt() as attempt:
                if self.prepared.spread is None:
                    self._take_up(change)
                else:
                    self._cut_anew(self.prepared.spread)
                then()
            if not attempt.broken:
                return change

    def _take_up(self, change: Change) -> None:
        """State from the rank that has it, or from the store."""
        standing, rank = self.standing, self.where.rank
        if isinstance(self.keeper, LoneKeeper):
            self.keeper.regroup()
        self._check_hardware()
        now_s = self.clock()
        before = Stays.from_json(self.keeper.stays.to_json(now_s)) if standing.has_state else None
        source = 0 if change.restores else change.source
        if change.restores and rank == 0:
            self._restore()
            before = standing.stays
        if source is not None and self.where.world > 1:
            mine = self._carried(before) if rank == source else None
            found = hand_over(mine, source)
            at = self.course.resume("the others' state", found["data"], found["config"])
            if at.step and (not standing.has_state or standing.at.step != at.step):
                self.prepared.load(found)
            standing.at, standing.metrics, standing.has_state = at, found["metrics"], True
            before = Stays.from_json(found["stays"])
        self._watch_stays(before)

    def _cut_anew(self, spread: Spread) -> None:
        """Nobody has the state of a spread model whole: all load their pieces from the store."""
        if isinstance(self.keeper, SpreadKeeper):
            with self.where.membership.opening():
                self.keeper.regroup()
        self.prepared.cut()
        with self.where.membership.opening():
            self._restore()
        if not spread.has_weights:
            self.where.leave("no checkpoint holds the weights of a model that is spread")
        self._watch_stays(self.standing.stays)

    def _carried(self, stays: Stays | None) -> dict[str, Any]:
        """What a rank gives to those that are behind.

        Before the first step that is no state: engines make the weights equal, and asking a fresh
        optimizer for its state would give it one, with a step in it.
        """
        standing = self.standing
        words = {
            "data": self.course.data(standing.at),
            "config": self.course.words(run=self.where.name, world=self.where.world),
            "metrics": dict(standing.metrics),
            "stays": stays.to_json(stays.since_s) if stays else None,
        }
        return {**self.prepared.state(), **words} if standing.at.step else words

    def _restore(self) -> None:
        """Load the newest whole checkpoint, if there is one."""
        standing = self.standing
        loaded = self.keeper.load(self.prepared.state)
        standing.stays = Stays.from_json(loaded.data.get("stays")) if loaded else None
        if loaded is not None:
            uri = f"{self.where.folder.uri}@{loaded.step}"
            standing.at = self.course.resume(uri, loaded.data, loaded.config)
            self.prepared.load(loaded.state)
            standing.metrics, standing.loaded_step = loaded.metrics, loaded.step
        standing.has_state = True

    def _check_hardware(self) -> None:
        if self.is_exact:
            check_everyone(self.course.hardware)

    def _watch_stays(self, before: Stays | None) -> None:
        """Whoever is not there any more was interrupted."""
        hosts = hosts_of_everyone(self.where.place)
        self.keeper.stays = Stays.begin(before, hosts=hosts, now_s=self.clock())
