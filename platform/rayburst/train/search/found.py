"""What a search found: every trial with its values, the best one, as table, JSON and page. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rayburst.report.tables import Table
from rayburst.train.search.rungs import Standing, Values
from rayburst.train.search.settings import Search

__all__ = ["Found", "Tried"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Tried:
    """One trial. `values`: step -> what was measured where it counted, ascending."""

    number: int
    settings: Mapping[str, Any]
    values: Mapping[int, float]
    standing: Standing

    @property
    def last(self) -> float | None:
        """The value at its last rung; None: not finite, or none."""
        values = list(self.values.values())
        return values[-1] if values and math.isfinite(values[-1]) else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """`values` as the journal has them."""

    search: Search
    values: Values

    @property
    def trials(self) -> list[Tried]:
        """All of them, in the order of their numbers."""
        what = self.search
        standings = what.rungs.standings(self.values, trials=what.trials)
        return [
            Tried(
                number=number,
                settings={
                    name: value
                    for name, value in what.settings_of(number).items()
                    if name in what.space
                },
                # a trial may have trained on while its decision was open: that does not count
                values={
                    step: value
                    for step, value in sorted(self.values.get(number, {}).items())
                    if step <= standing.rung
                },
                standing=standing,
            )
            for number, standing in enumerate(standings)
        ]

    @property
    def best(self) -> Tried | None:
        """The best trial that came to the end; None: every one diverged."""
        best = self.search.rungs.best(self.values, trials=self.search.trials)
        return None if best is None else self.trials[best]

    def table(self) -> Table:
        """The trials, the best first: those that came further, then those with lower values."""
        names = list(self.search.space)
        best = self.best
        rows = [
            (
                f"{one.number}{' *' if best is not None and one.number == best.number else ''}",
                *(shown(one.settings[name]) for name in names),
                str(one.standing.rung),
                "-" if one.last is None else f"{one.last:.4f}",
                one.standing.state,
            )
            for one in sorted(self.trials, key=_rank)
        ]
        note = f"* the best: {self.folder_of(best)}" if best is not None else "no trial was finite"
        columns = ("trial", *names, "steps", "value", "ended")
        return Table(f"search {self.search.run}", columns, rows, note)

    def folder_of(self, one: Tried) -> str:
        """The run's folder of a trial: its checkpoints and its log."""
        return f"{self.search.folder}/trials/{one.number:05d}"

    def to_json(self) -> dict[str, Any]:
        """Every trial, and the best with where its last checkpoint is."""
        best = self.best
        return {
            "run": self.search.run,
            "best": None
            if best is None
            else {
                **_told(best),
                "checkpoint": f"{self.folder_of(best)}@{self.search.rungs.steps}",
            },
            "trials": [_told(one) for one in self.trials],
        }


def _rank(one: Tried) -> tuple[int, float, int]:
    return (-one.standing.rung, math.inf if one.last is None else one.last, one.number)


def _told(one: Tried) -> dict[str, Any]:
    return {
        "trial": one.number,
        "settings": dict(one.settings),
        "ended": one.standing.state,
        "values": {str(s): v if math.isfinite(v) else None for s, v in one.values.items()},
    }


def shown(value: Any) -> str:
    """A setting in a table."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
