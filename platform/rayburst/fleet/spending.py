"""What was spent up to now: the ledger's sums, and what was paid since, by the second. Pure.

    spending = Spending(opening)                  # a cost.spent.Spent, of the ledger
    spending.charge(now, rates)                   # USD an hour by key, from now on
    spending.rebase(told)                         # a later word of the ledger replaces the count
    spending.usd(job_key("first"))

The ledger is a minute behind and a budget must be kept now. So the last minutes are counted here,
with the ledger's own rules, and forgotten as soon as the ledger has them: nothing is counted twice,
and no other record is kept.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from rayburst.cost.spent import Spent, in_month, month_of
from rayburst.fleet.view import Action, ActionKind

REMEMBER_S = 900.0
"""How far back a ledger may lie that is still taken over."""

WARN_SHARE = 0.8
"""Of a budget: what is spent by then is told, once."""


class Spending:
    """Dollars by key, as in `Spent`, up to the last `charge`."""

    def __init__(self, opening: Spent) -> None:
        self._told = opening
        self._usd = dict(opening.usd)
        self._at = opening.at
        self._rates: Mapping[str, float] = {}
        self._trail: deque[tuple[float, float, Mapping[str, float]]] = deque()

    def charge(self, now: float, rates: Mapping[str, float]) -> None:
        """Count what was paid since the last call, at the rates given then."""
        if now > self._at:
            self._trail.append((self._at, now, self._rates))
            _add(self._usd, self._rates, self._at, now)
            self._at = now
        while self._trail and self._trail[0][1] < now - REMEMBER_S:
            self._trail.popleft()
        self._rates = dict(rates)

    def rebase(self, told: Spent) -> bool:
        """Take over what the ledger says; False where it is nothing new, or too old to count on."""
        begin = self._trail[0][0] if self._trail else self._at
        if not self._told.at < told.at or not begin <= told.at <= self._at:
            return False
        usd = dict(told.usd)
        for start, end, rates in self._trail:
            if end > told.at:
                _add(usd, rates, max(start, told.at), end)
        self._usd, self._told = usd, told
        return True

    def usd(self, key: str) -> float:
        """Dollars of one key."""
        return self._usd.get(key, 0.0)


def _add(usd: dict[str, float], rates: Mapping[str, float], start: float, end: float) -> None:
    month = month_of(start)
    for key, rate in rates.items():
        for where in (key, in_month(key, month)):
            usd[where] = usd.get(where, 0.0) + rate * (end - start) / 3600


@dataclass(frozen=True, kw_only=True, slots=True)
class Limit:
    """A budget and what of it is spent.

    Attributes:
        subject: whom it is about, in decisions: a job's id, "tenant blue", "fleet".
        span: "" for all time, or a month.
    """

    subject: str
    budget_usd: float
    spent_usd: float
    span: str = ""

    @property
    def left_usd(self) -> float:
        return self.budget_usd - self.spent_usd


def limits(
    spending: Spending, key: str, *, ever: float | None, monthly: float | None, now: float
) -> Iterator[Limit]:
    """The budgets there are of the fleet or a tenant: for all time, and for this month."""
    month = month_of(now)
    if ever is not None:
        yield Limit(subject=key, budget_usd=ever, spent_usd=spending.usd(key))
    if monthly is not None:
        spent = spending.usd(in_month(key, month))
        yield Limit(subject=key, budget_usd=monthly, spent_usd=spent, span=month)


def tightest(found: Iterable[Limit]) -> Limit | None:
    """The one with the least left."""
    return min(found, key=lambda limit: limit.left_usd, default=None)


def warnings(found: Iterable[Limit]) -> list[Action]:
    """A word on every budget of which `WARN_SHARE` is spent."""
    return [
        Action(kind=ActionKind.BUDGET, subject=limit.subject, why=_words(limit))
        for limit in found
        if limit.spent_usd >= WARN_SHARE * limit.budget_usd
    ]


def _words(limit: Limit) -> str:
    span = f" for {limit.span}" if limit.span else ""
    share = f"{limit.spent_usd / limit.budget_usd:.0%} of" if limit.budget_usd > 0 else "all of"
    return (
        f"{share} its budget{span} is spent: {limit.spent_usd:.4f} of {limit.budget_usd:.4f} USD; "
        f"its hosts get notice before the rest is gone"
    )
