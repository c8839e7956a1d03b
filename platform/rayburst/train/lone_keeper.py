"""The checkpoints of a run whose group is rebuilt in place: rank 0 saves by itself.

State that every rank holds whole needs no other rank to be saved, so no save breaks when members
come or go. The others take part in the reports to Ray Train alone. What a rank that departs has
under way it brings to its end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rayburst.checkpoint.checkpointer import Checkpointer, Options, Saved
from rayburst.errors import CheckpointError, StoreError
from rayburst.train.keeper import TRIES, Keeper
from rayburst.train.run_options import RunOptions
from rayburst.train.runlog import RunLog
from rayburst.train.spread_keeper import SpreadKeeper
from rayburst.train.surroundings import Surroundings

__all__ = ["LoneKeeper", "keeper_of"]


class LoneKeeper(Keeper):
    """`load` is for one rank, which gives its state to the others; the rest as the parent."""

    _owes_report = False

    def regroup(self) -> None:
        """Members have changed: a report that some of them owe is nobody's."""
        self._owes_report = False

    def save_surely(self, state: Mapping[str, Any], *, step: int, **words: Any) -> Saved | None:
        self._begin(state, step, **words)
        for attempt in range(1, TRIES + 1):
            try:
                saved = self._saved()
                break
            except (StoreError, CheckpointError):
                if attempt == TRIES:
                    raise
                self._stage(state, step, **words)
        self._report(saved)
        return saved

    def settle(self) -> Saved | None:
        try:
            saved = self._saved()
        except (StoreError, CheckpointError):
            saved = None  # poll has told why
        self._report(saved)
        return saved

    def _checkpointer(self) -> Checkpointer:
        options = Options(clock=self._clock, is_alone=True)
        return Checkpointer(self._store(), options)

    def _is_there(self) -> bool:
        return self._has_any()

    def _stage(self, state: Mapping[str, Any], step: int, **words: Any) -> None:
        if self._where.rank == 0:
            super()._stage(state, step, **words)
        else:
            self._metrics = {**words["metrics"], "step": step}
        self._owes_report = True

    def _saved(self) -> Saved | None:
        """What came of the save under way; None where this rank has none."""
        handle, self._pending = self._pending, None
        if handle is None:
            return None
        self._checkpoints.wait()
        self._poll(handle)
        self._last = handle.result()
        return self._last

    def _report(self, saved: Saved | None) -> None:
        if self._owes_report:
            self._owes_report = False
            self._where.report(self._metrics, saved)


def keeper_of(
    where: Surroundings,
    log: RunLog,
    options: RunOptions,
    clock: Callable[[], float],
    *,
    is_spread: bool = False,
) -> Keeper:
    """The keeper that this rank's group needs. `is_spread`: no rank holds the whole state."""
    kind = Keeper
    if where.membership.is_in_place:
        kind = SpreadKeeper if is_spread else LoneKeeper
    return kind(
        where,
        log,
        every_s=options.checkpoint_every_s,
        keep=options.checkpoints_kept,
        peer=where.peer if options.peer else None,
        clock=clock,
    )
