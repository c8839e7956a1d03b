"""What the ledger says was spent, by job, tenant and month: what budgets are held against. Pure.

    spent = spent_of(entries, at=now)
    spent.usd[job_key("first")], spent.usd[in_month(tenant_key("blue"), "2026-11")]

The bookkeeper writes it into the fleet's folder whenever it settles; the agent counts on from there
(`fleet/spending.py`). Unknown prices add nothing.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime

from rayburst.cost.entries import NANO, Entry

FLEET = "fleet"
DEFAULT_TENANT = "default"


def job_key(job: str) -> str:
    """Where a job's dollars stand."""
    return f"job {job}"


def tenant_key(tenant: str) -> str:
    """Where a tenant's dollars stand; jobs that name none are the default's."""
    return f"tenant {tenant or DEFAULT_TENANT}"


def in_month(key: str, month: str) -> str:
    """The same for one month only."""
    return f"{month} {key}"


def month_of(t: float) -> str:
    """The calendar month of a time in unix seconds, in UTC: "2026-11"."""
    return datetime.fromtimestamp(t, tz=UTC).strftime("%Y-%m")


@dataclass(frozen=True, kw_only=True, slots=True)
class Spent:
    """USD by key (`job_key`, `tenant_key`, FLEET, each also `in_month`) up to `at` (unix time)."""

    at: float
    usd: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> str:
        """As `from_json` reads it."""
        return json.dumps(asdict(self))


def spent_of(entries: Iterable[Entry], *, at: float) -> Spent:
    """Sum up ledger entries. What nobody held is the fleet's alone."""
    nano: dict[str, int] = defaultdict(int)
    for entry in entries:
        owner, month = entry.line.owner, month_of(entry.line.start_ms / 1000)
        keys = [FLEET]
        if owner.job:
            keys += [job_key(owner.job), tenant_key(owner.tenant)]
        for key in keys:
            nano[key] += entry.nano_usd or 0
            nano[in_month(key, month)] += entry.nano_usd or 0
    return Spent(at=at, usd={key: amount / NANO for key, amount in nano.items() if amount})
