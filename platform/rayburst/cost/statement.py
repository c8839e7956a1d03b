"""What was paid, by job, tenant, model, purpose, node, pool, market or day. Pure.

    statement = make_statement(entries, by="job")
    print(statement)                 # a table whose column of dollars sums to its total
    statement.frame()                # a pandas DataFrame
    statement.html()                 # a page with a picture
    statement.to_dict()              # JSON

The dollars of the rows sum to the total exactly as printed: rounding is by largest remainder, to
the cent, or finer where all of it is under a dollar. Unknown prices are counted in hours beside it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from html import escape
from typing import TYPE_CHECKING, Any

from rayburst.cost.apportion import apportion
from rayburst.cost.entries import NANO, PURPOSES, Entry, Line
from rayburst.errors import PriceError
from rayburst.report.tables import Table

if TYPE_CHECKING:
    import pandas

_NOBODY = "(nobody)"
_CENT = NANO // 100
_MICRO = NANO // 10**6
_MS_PER_HOUR = 3_600_000
_MONTH_S = 730 * 3600

_KEYS: Mapping[str, Callable[[Line], str]] = {
    "job": lambda line: line.owner.job,
    "tenant": lambda line: line.owner.tenant,
    "model": lambda line: line.owner.model,
    "purpose": lambda line: line.purpose,
    "node": lambda line: line.node,
    "pool": lambda line: line.pool,
    "market": lambda line: line.market,
    "day": lambda line: datetime.fromtimestamp(line.start_ms / 1000, tz=UTC).strftime("%Y-%m-%d"),
}
KEYS = tuple(_KEYS)


@dataclass(frozen=True, kw_only=True, slots=True)
class CostRow:
    """One job (tenant, model, ...): what it paid and for what.

    Attributes:
        key: "(nobody)" for what nobody held.
        usd: rounded so that the rows sum to the statement's total.
        node_hours: of whole nodes; half a node for an hour is 0.5.
        usd_by_purpose: dollars by purpose (`entries.PURPOSES`), unrounded.
        unpriced_hours: node-hours whose price is not known; their dollars are not in `usd`.
    """

    key: str
    usd: Decimal
    node_hours: float
    usd_by_purpose: Mapping[str, Decimal]
    unpriced_hours: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Statement:
    """Rows, dearest first, and their sum. Prints as a table.

    Attributes:
        moved_gb: GB (10^9 bytes) that hosts read from the object store and wrote to it.
        unpriced_gb: of them, those whose price is not known.
        unpriced_gb_months: objects kept whose price is not known.
    """

    by: str
    rows: Sequence[CostRow]
    usd: Decimal
    usd_by_purpose: Mapping[str, Decimal]
    unpriced_hours: float
    moved_gb: float = 0.0
    unpriced_gb: float = 0.0
    unpriced_gb_months: float = 0.0

    @property
    def is_complete(self) -> bool:
        """Whether every price is known."""
        return not (self.unpriced_hours or self.unpriced_gb or self.unpriced_gb_months)

    @property
    def network_share(self) -> float | None:
        """Traffic's part of the dollars; None where some of it has no price, or nothing cost."""
        if self.unpriced_gb or not self.usd:
            return None
        return float(self.usd_by_purpose.get("transfer", Decimal(0)) / self.usd)

    def table(self) -> Table:
        """Dollars in all and by purpose; a purpose nobody paid for has no column."""
        shown = [p for p in PURPOSES if self.usd_by_purpose.get(p)]
        rows = [self._cells(row.key, row.node_hours, row.usd, row.usd_by_purpose, shown)
                for row in self.rows]  # fmt: skip
        hours = sum(row.node_hours for row in self.rows)
        rows.append(self._cells("total", hours, self.usd, self.usd_by_purpose, shown))
        return Table(
            f"cost by {self.by}", (self.by, "node-hours", "USD", *shown), rows, self._note()
        )

    def frame(self) -> pandas.DataFrame:
        """One row a key; columns usd, node_hours, unpriced_hours and one of dollars a purpose."""
        import pandas

        rows = [
            {
                self.by: row.key,
                "usd": float(row.usd),
                "node_hours": row.node_hours,
                "unpriced_hours": row.unpriced_hours,
                **{p: float(row.usd_by_purpose.get(p, 0)) for p in PURPOSES},
            }
            for row in self.rows
        ]
        columns = [self.by, "usd", "node_hours", "unpriced_hours", *PURPOSES]
        return pandas.DataFrame(rows, columns=columns).set_index(self.by)

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it; dollars are decimal texts, because floats would lose cents."""
        return {
            "by": self.by,
            "usd": str(self.usd),
            "unpriced_hours": self.unpriced_hours,
            "moved_gb": self.moved_gb,
            "unpriced_gb": self.unpriced_gb,
            "unpriced_gb_months": self.unpriced_gb_months,
            "usd_by_purpose": {p: str(v) for p, v in self.usd_by_purpose.items()},
            "rows": [
                {
                    self.by: row.key,
                    "usd": str(row.usd),
                    "node_hours": row.node_hours,
                    "unpriced_hours": row.unpriced_hours,
                    "usd_by_purpose": {p: str(v) for p, v in row.usd_by_purpose.items()},
                }
                for row in self.rows
            ],
        }

    def __str__(self) -> str:
        return str(self.table())

    def html(self) -> str:
        """A page: bars by purpose, and every number."""
        from rayburst.report.money import statement_page

        return statement_page(self)

    def _repr_html_(self) -> str:
        """In a notebook: the page in a frame of its own, so that no style leaks."""
        return f'<iframe srcdoc="{escape(self.html())}" width="100%" height="460"></iframe>'

    def _cells(
        self,
        key: str,
        hours: float,
        usd: Decimal,
        by: Mapping[str, Decimal],
        shown: Sequence[str],
    ) -> list[str]:
        parts = [f"{by.get(purpose, Decimal(0)).quantize(usd):,}" for purpose in shown]
        return [key, f"{hours:,.2f}", f"{usd:,}", *parts]

    def _note(self) -> str:
        return "; ".join(self._notes())

    def _notes(self) -> Iterator[str]:
        if self.moved_gb:
            share = self.network_share
            told = "" if share is None else f", {share:.1%} of all (10 to 15% is typical)"
            yield f"{self.moved_gb:,.3f} GB moved between hosts and the store{told}"
        unknown = {
            "node-hours": self.unpriced_hours,
            "GB of traffic": self.unpriced_gb,
            "GB-months of objects": self.unpriced_gb_months,
        }
        left = [f"{amount:,.3f} {what}" for what, amount in unknown.items() if amount]
        if left:
            yield f"and {', '.join(left)} whose price is not known"


def make_statement(entries: Iterable[Entry], *, by: str = "job") -> Statement:
    """Sum up ledger entries by one of KEYS.

    Raises:
        PriceError: `by` is none of KEYS.
    """
    if by not in _KEYS:
        raise PriceError(f"by={by!r}: costs are summed by {', '.join(KEYS)}")
    grouped: dict[str, list[Entry]] = defaultdict(list)
    everything = list(entries)
    for entry in everything:
        grouped[_KEYS[by](entry.line) or _NOBODY].append(entry)
    nano = {key: sum(e.nano_usd or 0 for e in held) for key, held in grouped.items()}
    usd = _rounded(nano)
    rows = [
        CostRow(
            key=key,
            usd=usd[key],
            node_hours=_hours(held),
            usd_by_purpose=_by_purpose(held),
            unpriced_hours=_hours(e for e in held if e.nano_usd is None),
        )
        for key, held in grouped.items()
    ]
    return Statement(
        by=by,
        rows=sorted(rows, key=lambda row: (-row.usd, row.key)),
        usd=sum(usd.values(), Decimal(0)),
        usd_by_purpose=_by_purpose(everything),
        unpriced_hours=_hours(e for e in everything if e.nano_usd is None),
        moved_gb=_gb(e for e in everything if e.line.purpose == "transfer"),
        unpriced_gb=_gb(
            e for e in everything if e.line.purpose == "transfer" and e.nano_usd is None
        ),
        unpriced_gb_months=_gb(
            e for e in everything if e.line.purpose == "storage" and e.nano_usd is None
        )
        / _MONTH_S,
    )


def _rounded(nano: Mapping[str, int]) -> dict[str, Decimal]:
    """Dollars to the cent (to 10^-6 below a dollar in all), summing to the rounded total."""
    total = sum(nano.values())
    unit, places = (_CENT, 2) if total >= NANO else (_MICRO, 6)
    if total <= 0:
        return {key: Decimal(0).scaleb(-places) for key in nano}
    dealt = apportion(
        round(Fraction(total, unit)), {k: Fraction(max(v, 0)) for k, v in nano.items()}
    )
    return {key: Decimal(units).scaleb(-places) for key, units in dealt.items()}


def _by_purpose(entries: Iterable[Entry]) -> dict[str, Decimal]:
    sums: dict[str, int] = defaultdict(int)
    for entry in entries:
        sums[entry.line.purpose] += entry.nano_usd or 0
    return {p: Decimal(sums[p]).scaleb(-9) for p in PURPOSES if sums.get(p)}


def _gb(entries: Iterable[Entry]) -> float:
    return sum(entry.quantity for entry in entries) / 10**9


def _hours(entries: Iterable[Entry]) -> float:
    return sum(e.quantity for e in entries if e.line.unit == "ms") / _MS_PER_HOUR
