"""Whether a candidate may take production's place, decided while answers come in. Pure.

    judge = Judge(Limits(agreement=0.95))
    judge.take(Pair(failed=False, agreement=0.99, ratio=1.05))
    judge.decision                      # None, or what to do and why

Three means of numbers from 0 to 1 are watched: how often the candidate fails, at which share of
positions its likeliest token is production's, and in which share of pairs it took over `slower`
times as long. Each has a confidence sequence, an interval that holds the true mean at all
times at once, so it may be looked at after every answer: the predictable plug-in empirical
Bernstein sequence (Waudby-Smith and Ramdas, "Estimating means of bounded random variables by
betting", JRSS B 86(1), 2024, theorem 2). With the risk shared among three, a candidate within its
limits is rolled back, and one beyond a limit is promoted, with a chance of `risk` at most, however
long it takes. One that is exactly at a limit may never be decided.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["ConfidenceSequence", "Decision", "Judge", "Limits", "Pair"]

_MOST_BET = 0.75  # theorem 2 allows any below 1; near it rare events are bounded soonest
_USUAL = 0.5  # pairs that may be slower: of equals half of the pairs is slower by a hair


class Limits(BaseModel):
    """What a candidate must keep.

    `agreement`: least mean share of positions with production's likeliest token. `errors`: largest
    share of requests on which it fails. `slower`: it is slow when it takes more than so many times
    production's time in more than half of all pairs. `risk`: chance of a wrong decision.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    agreement: float = Field(default=0.9, ge=0, lt=1)
    errors: float = Field(default=0.02, gt=0, lt=1)
    slower: float = Field(default=1.5, ge=1)
    risk: float = Field(default=0.05, gt=0, lt=0.5)


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """One request that both had: `agreement` and `ratio` of times are None where it failed."""

    failed: bool
    agreement: float | None = None
    ratio: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """What is decided, and the figures: means and bounds by measure."""

    kind: Literal["promote", "rollback"]
    why: str
    figures: dict[str, float]


@dataclass(slots=True)
class ConfidenceSequence:
    """Bounds of a mean of numbers from 0 to 1; with chance `alpha` at most they are ever wrong."""

    alpha: float
    n: int = 0
    low: float = 0.0
    high: float = 1.0
    _sum: float = 0.0
    _mean: float = 0.5
    _squares: float = 0.25
    _bets: float = 0.0
    _won: float = 0.0
    _spent: float = 0.0

    @property
    def mean(self) -> float:
        """Of what was taken; 0.5 before anything was."""
        return self._sum / self.n if self.n else 0.5

    def take(self, x: float) -> None:
        """Raises ValueError for a number beyond 0 to 1."""
        if not 0.0 <= x <= 1.0:
            raise ValueError(f"{x} is no number from 0 to 1")
        needed = math.log(2.0 / self.alpha)
        self.n += 1
        variance = self._squares / self.n  # of what came before: a bet may not know its outcome
        bet = math.sqrt(2.0 * needed / (variance * self.n * math.log(1.0 + self.n)))
        bet = min(bet, _MOST_BET)
        self._bets += bet
        self._won += bet * x
        self._spent += 4.0 * (x - self._mean) ** 2 * (-math.log(1.0 - bet) - bet) / 4.0
        self._sum += x
        self._mean = (0.5 + self._sum) / (self.n + 1)
        self._squares += (x - self._mean) ** 2
        centre, radius = self._won / self._bets, (needed + self._spent) / self._bets
        self.low, self.high = max(self.low, centre - radius), min(self.high, centre + radius)


@dataclass(slots=True)
class Judge:
    """Takes pairs until they decide; what is decided stays."""

    limits: Limits
    decision: Decision | None = None
    _failed: ConfidenceSequence = field(init=False)
    _agrees: ConfidenceSequence = field(init=False)
    _slow: ConfidenceSequence = field(init=False)

    def __post_init__(self) -> None:
        alpha = self.limits.risk / 3
        self._failed, self._agrees, self._slow = (ConfidenceSequence(alpha) for _ in range(3))

    @property
    def figures(self) -> dict[str, float]:
        """Pairs, and mean and bounds of each measure."""
        told = {"pairs": float(self._failed.n)}
        named = (("errors", self._failed), ("agreement", self._agrees), ("slow", self._slow))
        for name, seq in named:
            told |= {name: seq.mean, f"{name}_low": seq.low, f"{name}_high": seq.high}
        return {name: round(value, 4) for name, value in told.items()}

    def take(self, pair: Pair) -> None:
        """Take one request in."""
        self._failed.take(float(pair.failed))
        if pair.agreement is not None:
            self._agrees.take(pair.agreement)
        if pair.ratio is not None:
            self._slow.take(float(pair.ratio > self.limits.slower))
        if self.decision is None:
            self.decision = self._decide()

    def _decide(self) -> Decision | None:
        limits = self.limits
        failed, agrees, slow = self._failed, self._agrees, self._slow
        if failed.low > limits.errors:
            said = f"it fails on {failed.mean:.1%} of requests, more than {limits.errors:.1%}"
        elif agrees.high < limits.agreement:
            said = f"it agrees at {agrees.mean:.1%} of positions, less than {limits.agreement:.1%}"
        elif slow.low > _USUAL:
            said = f"it takes over {limits.slower:g} times as long in {slow.mean:.0%} of pairs"
        elif (
            failed.high <= limits.errors and agrees.low >= limits.agreement and slow.high <= _USUAL
        ):
            said = (
                f"it fails on {failed.mean:.1%} of requests, agrees at {agrees.mean:.1%} of "
                f"positions, is slow in {slow.mean:.0%} of pairs"
            )
            return Decision(kind="promote", why=self._counted(said), figures=self.figures)
        else:
            return None
        return Decision(kind="rollback", why=self._counted(said), figures=self.figures)

    def _counted(self, said: str) -> str:
        return f"{said} ({self._failed.n} requests)"
