"""The named actor that judges a trial by what all replicas have seen, and how a replica reports.

One actor for each alias of a model, detached: it lives while its cluster does and takes no CPU of
Ray's books. One that Ray starts anew begins to judge anew, so what it decides has the
stated risk still.
"""

from __future__ import annotations

import hashlib
import logging
from typing import Any

import ray
from ray.exceptions import RayActorError

from rayburst.models.judge import Judge, Pair
from rayburst.models.registry import ModelRegistry
from rayburst.models.trials import Outcome, Trial

__all__ = ["Reporter", "TrialJudge"]

_log = logging.getLogger("ray.serve")
_NAMESPACE = "rayburst"
_ANSWER_S = 60.0


class TrialJudge:
    """Takes pairs of the trial that runs, and ends it when they decide."""

    def __init__(self, root: str, name: str, alias: str) -> None:
        self._trials = ModelRegistry.open(root).trials(name, alias)
        self._key: tuple[int, str] | None = None
        self._judge: Judge | None = None

    def take(self, trial: Trial, production: str, pairs: list[Pair]) -> dict[str, float]:
        """The figures so far. Pairs with another production begin a new judgement."""
        if self._judge is None or self._key != (trial.number, production):
            self._key, self._judge = (trial.number, production), Judge(trial.limits)
        judge = self._judge
        for pair in pairs:
            judge.take(pair)
        if (decision := judge.decision) is not None:
            outcome: Outcome = "promoted" if decision.kind == "promote" else "rolled back"
            ended = self._trials.end(trial, outcome, why=decision.why, figures=decision.figures)
            _log.info("trial %d: %s: %s", trial.number, ended.outcome, ended.why)
        return judge.figures


class Reporter:
    """What a replica calls with its pairs; makes the actor where there is none."""

    def __init__(self, root: str, name: str, alias: str) -> None:
        self._where = (root, name, alias)
        self._actor: Any = None

    def __call__(self, trial: Trial, production: str, pairs: list[Pair]) -> None:
        """Blocks until they are taken. RayError: they were not."""
        if self._actor is None:
            self._actor = _actor(*self._where)
        try:
            ray.get(self._actor.take.remote(trial, production, pairs), timeout=_ANSWER_S)
        except RayActorError:
            self._actor = None
            raise


def _actor(root: str, name: str, alias: str) -> Any:
    which = hashlib.sha256(f"{root}\n{name}\n{alias}".encode()).hexdigest()[:16]
    made = ray.remote(TrialJudge).options(
        name=f"rayburst-trial-{which}",
        namespace=_NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        num_cpus=0,
        max_restarts=-1,
    )
    return made.remote(root, name, alias)
