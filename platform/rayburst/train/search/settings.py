"""What a search is: its space, how many trials, how long, where. Pure: checked values, no more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rayburst.train.search.rungs import Rungs
from rayburst.train.search.space import Space, draw, space_to_json

__all__ = ["Search"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Search:
    """One search. Lower values are better.

    Attributes:
        run: its folder below `storage`; the same one again goes on where it stands.
        space: settings by name, each a `Range` or a `Choice`.
        fixed: JSON settings that all trials share.
        rungs: how long a trial is, and where trials are compared.
        trials: how many are drawn.
        seed: of the draws.
        at_once: so many trials at most train at a time; 0 for as many as there is room for.
        cpus: CPUs and threads of a trial, the same on every machine.
        use_gpu: one GPU a trial.
    """

    run: str
    storage: str
    space: Space
    rungs: Rungs
    fixed: Mapping[str, Any] = field(default_factory=dict)
    trials: int = 8
    seed: int = 0
    at_once: int = 0
    cpus: int = 1
    use_gpu: bool = False
    checkpoint_every_s: float | None = None

    def __post_init__(self) -> None:
        if not self.run or "/" in self.run or self.run.startswith("."):
            raise ValueError(f"run {self.run!r}: give a name without '/', for example search-1")
        if not self.space:
            raise ValueError("an empty space: give at least one setting, as lr=log:1e-4..1e-2")
        if self.trials < 1 or self.at_once < 0 or self.cpus < 1:
            raise ValueError(
                f"trials={self.trials}, at_once={self.at_once}, cpus={self.cpus}: give trials and "
                "cpus of 1 or more, at_once of 0 or more"
            )
        both = sorted(self.space.keys() & self.fixed.keys())
        if both:
            raise ValueError(f"{', '.join(both)}: give a setting in the space or fixed, not both")

    @property
    def folder(self) -> str:
        """Where everything of this search lies."""
        return f"{self.storage.rstrip('/')}/{self.run}"

    def settings_of(self, trial: int) -> dict[str, Any]:
        """What the training function of a trial gets."""
        return {**self.fixed, **draw(self.space, seed=self.seed, trial=trial)}

    def identity(self) -> dict[str, Any]:
        """What may not change when the search goes on."""
        return {
            "space": space_to_json(self.space),
            "fixed": dict(self.fixed),
            "steps": self.rungs.steps,
            "first_rung": self.rungs.first,
            "factor": self.rungs.factor,
            "trials": self.trials,
            "seed": self.seed,
            "cpus": self.cpus,
        }
