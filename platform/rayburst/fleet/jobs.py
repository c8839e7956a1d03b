"""A job as the planner sees it: its terms, its ask, what it holds, how long its work takes. Pure.

    terms = read_terms({"deadline": "6h", "budget": "5 USD"}, submitted_at=t)
    job = JobView(id="first", submitted_at=t, terms=terms, ask=ask)
    work_left_s(job, workers=4)

Terms travel as Ray Jobs metadata (`ray job submit --metadata-json`), so every value is text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, TypedDict

from rayburst.errors import SpecError, UnitError
from rayburst.fleet import units
from rayburst.fleet.spec import Market
from rayburst.train.grants import Ask, Grant

CHANGEOVER_S = 30.0
"""From the start of a group of workers to its first step, until the job has shown its own."""

SLACK_SHARE = 0.2
"""A size is comfortable when so much of its work time is left over before the deadline."""

_EFFICIENCY = 0.9  # another size is taken when it needs less than this share of the node-seconds
TERMS = ("deadline", "budget", "tenant", "priority", "floor", "span", "market")


HOME = frozenset({Market.ON_PREM})
USUAL = frozenset({Market.ON_PREM, Market.SPOT})
ALL = frozenset(Market)


class MarketPolicy(StrEnum):
    """Which markets a job may use."""

    AUTO = "auto"
    """On-prem and spot; on-demand when the deadline or the floor needs it."""
    ON_PREM = "on-prem"
    """Owned hosts only."""
    SPOT = "spot"
    """Owned and spot hosts, whatever the deadline says."""
    ON_DEMAND = "on-demand"
    """All markets, on-demand whenever the others do not suffice."""


ALLOWED = {
    MarketPolicy.AUTO: USUAL,
    MarketPolicy.ON_PREM: HOME,
    MarketPolicy.SPOT: USUAL,
    MarketPolicy.ON_DEMAND: ALL,
}
"""The markets that a job may use at any time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Terms:
    """What the submitter of a job wants.

    Attributes:
        deadline: unix seconds; None is none.
        floor: workers that are to run at any time, on-demand if need be.
        span_any: whether its workers may lie in several domains; None is the fleet's own rule.
    """

    deadline: float | None = None
    budget_usd: float | None = None
    tenant: str = "default"
    priority: int = 0
    floor: int = 0
    span_any: bool | None = None
    market: MarketPolicy = MarketPolicy.AUTO

    @property
    def markets(self) -> frozenset[Market]:
        """All markets that it may use when it must."""
        must = self.deadline is not None or self.floor > 0
        return ALL if must and self.market is MarketPolicy.AUTO else ALLOWED[self.market]


@dataclass(frozen=True, kw_only=True, slots=True)
class Tenant:
    """Who shares the fleet. `share` weighs against the other tenants'; spent is up to now."""

    share: float = 1.0
    budget_usd: float | None = None
    spent_usd: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class JobView:
    """One job. Without an `ask` nobody knows what it needs, and it is not planned.

    Attributes:
        grant: what it was granted last.
        spent_usd: what its hosts cost up to now.
        problem: why its metadata could not be read; "" when it could.
    """

    id: str
    submitted_at: float
    terms: Terms = Terms()
    ask: Ask | None = None
    grant: Grant | None = None
    spent_usd: float = 0.0
    problem: str = ""


class GivenTerms(TypedDict, total=False):
    """Terms as people give them: `deadline` as "6h" from now, or as a time with its zone; `budget`
    as "5 USD"; `span` "zone" or "any"; `market` one of MarketPolicy."""

    deadline: str | datetime
    budget: str
    tenant: str
    priority: int
    floor: int
    span: str
    market: str


def to_metadata(given: GivenTerms, now: float) -> dict[str, str]:
    """The metadata of a job with these terms; a deadline that counts from now becomes a time.

    Raises:
        SpecError: a value cannot be read; the message says what is allowed.
    """
    unknown = [key for key in given if key not in TERMS]
    if unknown:
        raise SpecError(f"no term {', '.join(unknown)}; a job has {', '.join(TERMS)}")
    texts = {
        key: value.isoformat() if isinstance(value, datetime) else str(value)
        for key, value in given.items()
        if value is not None
    }
    terms = read_terms(texts, now)
    if terms.deadline is not None:
        texts["deadline"] = datetime.fromtimestamp(terms.deadline, UTC).isoformat()
    return texts


def read_terms(metadata: Mapping[str, str], submitted_at: float) -> Terms:
    """Terms from a job's metadata; keys that are none of `TERMS` belong to others.

    Raises:
        SpecError: a value cannot be read; the message says what is allowed.
    """
    given = {key: str(metadata[key]).strip() for key in TERMS if metadata.get(key)}
    read: dict[str, Any] = {}
    if "deadline" in given:
        read["deadline"] = _deadline(given["deadline"], submitted_at)
    if "budget" in given:
        read["budget_usd"] = _quantity("budget", units.money_usd, given["budget"])
    if "tenant" in given:
        read["tenant"] = given["tenant"]
    for key in ("priority", "floor"):
        if key in given:
            read[key] = _whole(key, given[key])
    if "span" in given:
        read["span_any"] = _one_of("span", given["span"], ("zone", "any")) == "any"
    if "market" in given:
        read["market"] = MarketPolicy(_one_of("market", given["market"], tuple(MarketPolicy)))
    return Terms(**read)


def _deadline(text: str, submitted_at: float) -> float:
    """A time of day with its zone, unix seconds, or a duration from the submission."""
    if text.replace(".", "", 1).isdecimal() and float(text) > 1e9:
        return float(text)
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        return submitted_at + _quantity("deadline", units.duration_s, text)
    if at.tzinfo is None:
        raise SpecError(f"deadline {text!r} names no time zone; write {text}+00:00 or {text}Z")
    return at.timestamp()


def _quantity(key: str, read: Any, text: str) -> float:
    try:
        return float(read(text))
    except UnitError as error:
        also = ", or a time such as 2026-01-31T18:00+01:00" if key == "deadline" else ""
        raise SpecError(f"{key} {text!r}: {error.why}{also}") from None


def _whole(key: str, text: str) -> int:
    if not text.removeprefix("-" if key == "priority" else "").isdecimal():
        raise SpecError(f"{key} {text!r}: a whole number is meant, such as {key}=2")
    return int(text)


def _one_of(key: str, text: str, allowed: tuple[str, ...]) -> str:
    if text not in allowed:
        raise SpecError(f"{key} {text!r}: it is one of {', '.join(allowed)}")
    return text


def speed(ask: Ask, workers: int) -> float | None:
    """Steps a second with so many workers; None until any size was measured.

    Between two measured sizes the line through them; below the smallest and above the largest in
    proportion, which for sizes above is the best there can be.
    """
    if not ask.speeds or workers <= 0:
        return None
    if workers in ask.speeds:
        return ask.speeds[workers]
    known = sorted(ask.speeds)
    low = max((size for size in known if size <= workers), default=None)
    high = min((size for size in known if size >= workers), default=None)
    if low is None or high is None:
        nearest = known[0] if low is None else known[-1]
        return ask.speeds[nearest] * workers / nearest
    part = (workers - low) / (high - low)
    return ask.speeds[low] * (1 - part) + ask.speeds[high] * part


def work_left_s(ask: Ask, workers: int) -> float | None:
    """Running time that the work left takes with so many workers; None while it is not known."""
    rate = speed(ask, workers)
    if ask.steps_left is None or rate is None:
        return None
    return ask.steps_left / rate if rate > 0 else math.inf


def changeover_s(ask: Ask) -> float:
    """From the start of a group of workers to its first step."""
    return CHANGEOVER_S if ask.changeover_s is None else ask.changeover_s


def resize_s(ask: Ask) -> float:
    """What a change of some of its hosts costs a job that runs, in seconds: a rebuilding in place,
    or that all save and start again.
    """
    return changeover_s(ask) + (ask.checkpoint_s or 0.0) if ask.stop_s is None else ask.stop_s


def owed_s(ask: Ask, now: float) -> float:
    """What of a changeover a job has still before it; all of it while nothing runs."""
    if not ask.hosts:
        return changeover_s(ask)
    if ask.started_at is None:
        return 0.0
    return max(changeover_s(ask) - (now - ask.started_at), 0.0)


def wanted_workers(job: JobView, now: float) -> int:
    """The size to aim at: the most, unless fewer workers do the work in fewer node-seconds.

    With a deadline a size must also leave slack; where none does, the fastest is taken.
    """
    ask = job.ask
    if ask is None or not ask.speeds:
        return ask.most if ask else 0
    sizes = sorted({s for s in (ask.most, *ask.speeds) if ask.least <= s <= ask.most})
    if len(sizes) == 1:
        return sizes[0]
    rates = {size: speed(ask, size) or 0.0 for size in sizes}
    if job.terms.deadline is not None and ask.steps_left is not None:
        left_s = job.terms.deadline - now - changeover_s(ask)
        in_time = [s for s in sizes if ask.steps_left * (1 + SLACK_SHARE) <= left_s * rates[s]]
        if not in_time:
            return max(sizes, key=lambda size: (rates[size], -size))
        sizes = in_time
    best = min(size / rates[size] for size in sizes if rates[size] > 0)
    return max(s for s in sizes if rates[s] > 0 and s / rates[s] * _EFFICIENCY <= best)
