"""The lines of the ledger, and the words in them. Pure.

Money is counted in whole nano-dollars (10^-9 USD) and time in whole milliseconds, so that sums are
exact and do not depend on their order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from decimal import Decimal
from fractions import Fraction
from typing import Any

NANO = 10**9

PURPOSES: Mapping[str, str] = {
    "useful": "work that lasted",
    "waiting": "held by a job, no work in it",
    "checkpoint": "blocked on checkpoints",
    "restarting": "nodes and workers starting",
    "lost": "work that was done again",
    "idle": "held by nobody",
    "storage": "objects kept",
    "transfer": "traffic",
}


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class Owner:
    """Who something was for. "" is nobody, or not known."""

    job: str = ""
    tenant: str = ""
    model: str = ""


NOBODY = Owner()


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class Line:
    """What an entry is about; two entries of one line are added up.

    Attributes:
        start_ms, end_ms: the period.
        node: "" for what no node did (storage, transfer).
        usd_per_hour: the node's price as a decimal text; "" is unknown.
        unit: of the quantity: "ms" of a whole node, or what a charge counts in.
    """

    start_ms: int
    end_ms: int
    node: str
    pool: str
    market: str
    owner: Owner
    purpose: str
    usd_per_hour: str = ""
    unit: str = "ms"


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One line with its amounts. `nano_usd` is None where the price is unknown."""

    line: Line
    quantity: int
    nano_usd: int | None

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        flat = asdict(self.line)
        return {**flat, **flat.pop("owner"), "quantity": self.quantity, "nano_usd": self.nano_usd}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Entry:
        """What `to_dict` gave."""
        rest = dict(raw)
        owner = Owner(**{name: rest.pop(name) for name in ("job", "tenant", "model")})
        quantity, nano_usd = rest.pop("quantity"), rest.pop("nano_usd")
        rest.pop("owner", None)
        return cls(line=Line(owner=owner, **rest), quantity=quantity, nano_usd=nano_usd)


def added(entries: Iterable[Entry]) -> list[Entry]:
    """One entry a line, in order; lines that cancel out are gone."""
    total: dict[Line, Entry] = {}
    for entry in entries:
        held = total.get(entry.line)
        total[entry.line] = entry if held is None else _sum(held, entry)
    kept = (total[line] for line in sorted(total))
    return [entry for entry in kept if entry.quantity or entry.nano_usd]


def difference(want: Iterable[Entry], have: Iterable[Entry]) -> list[Entry]:
    """What has to be written so that `have` becomes `want`."""
    less = [
        replace(e, quantity=-e.quantity, nano_usd=None if e.nano_usd is None else -e.nano_usd)
        for e in have
    ]
    return added([*want, *less])


def _sum(a: Entry, b: Entry) -> Entry:
    nano = None if a.nano_usd is None or b.nano_usd is None else a.nano_usd + b.nano_usd
    return replace(a, quantity=a.quantity + b.quantity, nano_usd=nano)


def nano_of(usd: Fraction) -> int:
    """Dollars as whole nano-dollars, half to even."""
    return round(usd * NANO)


def usd_of(nano_usd: int) -> Decimal:
    """Nano-dollars as dollars."""
    return Decimal(nano_usd).scaleb(-9)
