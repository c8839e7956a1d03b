"""Which form of a model answers when there is more to do than the best form can do in time. Pure.

    ladder = Ladder({"fp32": 1.0, "bf16": 0.999, "int8": 0.985}, floor=0.98, work_s=demand.work_s)
    ladder.asked(length=1, now_s=now)                # every request, refused or not
    variant = ladder.choose(holds, costs, now_s=now)  # for the batch that begins now

The rungs are in the order in which they are fallen back on, the most faithful first; one whose
agreement is below `floor` is never used, whatever happens. A batch is computed by the first rung,
from the present one on, with which everything that waits would be in time by the learned costs
(the batcher says so); where none is, by the cheapest. So degradation comes before refusal, which
admission decides by the cheapest rung.

It does not flap: having gone down it stays there until the load, as the next better rung would
carry it, has been below `BACK_LOAD` for `back_s`, and then it climbs by one. The costs of a rung
that is not used grow old, so once in `PROBE_S` a batch is given to the next better rung, if that
holds. After `back_s` without any request it begins at the top.

Two thresholds apart from each other and a time to hold against flapping: a Schmitt trigger with
a delay, as autoscalers and congestion control have it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from rayburst.errors import ModelError
from rayburst.serve.costs import CostCurve, Costs

__all__ = ["BACK_LOAD", "PROBE_S", "Ladder", "Rung"]

BACK_LOAD = 0.8  # of the next better rung, below which it is gone back to
PROBE_S = 10.0
_MEMORY_S = 2.5  # arrivals are counted over about so long


@dataclass(frozen=True, slots=True)
class Rung:
    """A form of a model. `agreement`: the share of the most faithful form's answers it gives."""

    name: str
    agreement: float


class Ladder:
    """The rungs of one replica's model, and where on them it stands."""

    def __init__(
        self,
        variants: Mapping[str, float],
        *,
        floor: float,
        work_s: Callable[[CostCurve], float],
        back_s: float = 5.0,
    ) -> None:
        """`work_s`: seconds of the replica that one request of a curve's kind takes, under load.

        ModelError: no variant agrees as often as `floor` asks, or one says what no share can be.
        """
        self.rungs = _allowed(variants, floor)
        self._work_s, self._back_s = work_s, back_s
        self._ready = {rung.name for rung in self.rungs}
        self._rates: dict[int, tuple[float, float]] = {}  # by length: requests a second, and when
        self._level = 0
        self._asked_s = self._calm_s = math.inf
        self._better_s = 0.0  # when a better rung than the present one was last used
        self.short: Callable[[str], None] | None = None  # told of the next rung not yet ready

    @property
    def best(self) -> str:
        """The most faithful form."""
        return self.rungs[0].name

    def agreement(self, variant: str) -> float:
        """Of a rung's answers with the best form's."""
        return next(rung.agreement for rung in self.rungs if rung.name == variant)

    def level(self, now_s: float) -> int:
        """How far down it stands: 0 is the most faithful rung."""
        return 0 if now_s - self._asked_s >= self._back_s else self._level

    def rate(self, length: int, now_s: float) -> float:
        """Requests of a length that come in a second, of late."""
        rate, at_s = self._rates.get(length, (0.0, now_s))
        return rate * math.exp(-(now_s - at_s) / _MEMORY_S)

    def asked(self, length: int, now_s: float) -> None:
        """Counts a request, refused or not."""
        self._level = self.level(now_s)
        self._asked_s = now_s
        self._rates[length] = (self.rate(length, now_s) + 1 / _MEMORY_S, now_s)

    def load(self, variant: str, costs: Costs, now_s: float) -> float:
        """The part of the replica's time that everything asked for would take in one form."""
        return sum(
            self.rate(length, now_s) * self._work_s(costs.of(variant, length))
            for length in self._rates
        )

    def is_try(self, variant: str) -> bool:
        """Whether a better form than the present one: it is tried, to learn what it costs now."""
        return any(rung.name == variant for rung in self.rungs[: self._level])

    def hold_back(self, variant: str) -> None:
        """This rung is not ready: not used until `admit`."""
        self._ready.discard(variant)

    def admit(self, variant: str) -> None:
        """A rung that was held back is ready."""
        self._ready.add(variant)

    def cheapest(self, costs: Costs, length: int, n: int) -> str:
        """The ready rung that takes least for `n` of a length, among those that were tried."""
        known = [r for r in self._usable() if costs.of(r.name, length).largest]
        if not known:
            return self.best
        return min(known, key=lambda rung: costs.of(rung.name, length).mean(n)).name

    def choose(
        self, holds: Callable[[str], bool], cheapest: Callable[[], str], costs: Costs, now_s: float
    ) -> str:
        """The form of the batch that begins now.

        `holds(variant)`: would everything that waits be in time if that form computed it.
        `cheapest()`: the form for when none holds.
        """
        self._climb(costs, now_s)
        begin = self._level
        if begin and now_s - self._better_s >= PROBE_S:
            begin -= 1
        names = [rung.name for rung in self.rungs]
        found = next((n for n in names[begin:] if n in self._ready and holds(n)), None)
        if found is None:
            self._tell_short()
            found = cheapest()
        place = names.index(found)
        if place < self._level or place == 0:
            self._better_s = now_s
        elif place > self._level:
            self._level, self._calm_s, self._better_s = place, math.inf, now_s
        return found

    def _climb(self, costs: Costs, now_s: float) -> None:
        if self._level == 0:
            return
        better = self.rungs[self._level - 1].name
        if self.load(better, costs, now_s) > BACK_LOAD:
            self._calm_s = math.inf
        elif math.isinf(self._calm_s):
            self._calm_s = now_s
        elif now_s - self._calm_s >= self._back_s:
            self._level -= 1
            self._calm_s = now_s

    def _usable(self) -> list[Rung]:
        return [rung for rung in self.rungs if rung.name in self._ready]

    def _tell_short(self) -> None:
        missing = next((r.name for r in self.rungs if r.name not in self._ready), None)
        if missing is not None and self.short is not None:
            self.short(missing)


def _allowed(variants: Mapping[str, float], floor: float) -> tuple[Rung, ...]:
    for name, agreement in variants.items():
        if not 0 <= agreement <= 1:
            raise ModelError(
                f"variant {name!r} has an agreement of {agreement!r}: give the share of the first "
                'one\'s answers that it gives, 0 to 1, for example variants = {"fp32": 1.0, '
                '"int8": 0.985}'
            )
    rungs = tuple(Rung(n, float(a)) for n, a in variants.items() if a >= floor)
    if not rungs:
        told = ", ".join(f"{name} {agreement:g}" for name, agreement in variants.items())
        raise ModelError(
            f"no variant agrees as often as agreement={floor:g} asks ({told or 'there is none'}): "
            "give the first one 1.0, or ask for less, for example agreement=0.9"
        )
    return rungs
