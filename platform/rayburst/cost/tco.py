"""Total cost of ownership: what a month costs in all, and when owning beats renting. Pure.

    bill = month_cost(compute_usd=820, storage_gb=4000, sent_gb=900, people_hours=6, ...)
    point = break_even(rack, rents={"spot": Decimal("0.97"), "on-demand": Decimal("3.06")})
    point.utilisation["on-demand"]            # own when it works more than this share of all hours

Of network it shows what was measured beside what is typical (10 to 15% of a cloud bill), so that a
bill without traffic in it is not taken for a whole one. What people cost is the reader's input:
hours and a rate; there is no default.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from rayburst.cost.on_prem import OwnedMachine
from rayburst.errors import PriceError
from rayburst.report import numbers
from rayburst.report.tables import Table

TYPICAL_NETWORK = (Decimal("0.10"), Decimal("0.15"))
SENSITIVITY = (Decimal("0.8"), Decimal(1), Decimal("1.2"))
_GRID = tuple(Decimal(n) / 200 for n in range(4, 201))


@dataclass(frozen=True, kw_only=True, slots=True)
class MonthCost:
    """One month in dollars; None is unknown, and then the total is what is known."""

    compute_usd: Decimal
    storage_usd: Decimal | None
    network_usd: Decimal | None
    people_usd: Decimal
    ownership_usd: Decimal

    @property
    def usd(self) -> Decimal:
        known = (self.storage_usd, self.network_usd)
        return (
            self.compute_usd
            + self.people_usd
            + self.ownership_usd
            + sum((part for part in known if part is not None), Decimal(0))
        )

    @property
    def typical_network_usd(self) -> tuple[Decimal, Decimal]:
        """What traffic would be at 10 and at 15% of compute, storage and traffic together."""
        rest = self.compute_usd + (self.storage_usd or Decimal(0))
        low, high = (rest * share / (1 - share) for share in TYPICAL_NETWORK)
        return (low, high)

    def table(self) -> Table:
        """Each part and its share; below, typical traffic where none was measured."""
        low, high = (numbers.usd(float(part)) for part in self.typical_network_usd)
        parts = {
            "compute": self.compute_usd,
            "storage": self.storage_usd,
            "network": self.network_usd,
            "people": self.people_usd,
            "own machines": self.ownership_usd,
        }
        rows = [
            (
                name,
                numbers.UNKNOWN if part is None else f"{part:,.2f}",
                "" if part is None else numbers.percent(float(part), float(self.usd)),
            )
            for name, part in parts.items()
        ]
        rows.append(("total", f"{self.usd:,.2f}", "100%"))
        note = f"typical traffic, 10 to 15% of a cloud bill: {low} to {high}"
        return Table("a month", ("part", "USD", "share"), rows, note)


@dataclass(frozen=True, kw_only=True, slots=True)
class BreakEven:
    """Owning against renting.

    Attributes:
        utilisation: by rent, the share of all hours from which on owning is cheaper; None where
            it never is, even at work around the clock.
        curve: (utilisation, USD an hour of work when owned), for a picture.
        sensitivity: by rent, `utilisation` with that rent at 80, 100 and 120%.
    """

    utilisation: Mapping[str, Decimal | None]
    curve: Sequence[tuple[Decimal, Decimal]]
    rents: Mapping[str, Decimal]
    sensitivity: Mapping[str, Sequence[Decimal | None]]

    def table(self) -> Table:
        """One row a rent."""
        rows = [
            (name, f"{self.rents[name]:.4f}", *(_share(s) for s in self.sensitivity[name]))
            for name in self.rents
        ]
        columns = ("instead of", "USD/h", "rent -20%", "as given", "rent +20%")
        note = "own when the machine works more than this share of all hours"
        return Table("own or rent", columns, rows, note)


def break_even(
    machine: OwnedMachine,
    *,
    rents: Mapping[str, Decimal],
    useful: Mapping[str, Decimal] | None = None,
) -> BreakEven:
    """From which utilisation on a machine that is owned beats each rent (USD an hour).

    An hour of work costs (fixed + u x power + (1 - u) x idle power) / u when owned, and
    rent / useful when rented; equal at u = (fixed + idle) / (rent / useful - power + idle).

    Args:
        useful: by rent, the share of paid hours that are work (goodput): a spot machine that spends
            a tenth of its hours on restarts has 0.9. By default 1.

    Raises:
        PriceError: there is no rent, or a share is none.
    """
    if not rents:
        raise PriceError('rents is empty: give USD an hour by name, as {"spot": Decimal("0.97")}')
    shares = useful or {}
    bad = {name: s for name, s in shares.items() if not 0 < s <= 1}
    if bad:
        raise PriceError(f"useful {bad}: a share of paid hours lies above 0 and up to 1, as 0.93")
    real = {name: usd / shares.get(name, Decimal(1)) for name, usd in rents.items()}
    return BreakEven(
        utilisation={name: _from(machine, usd) for name, usd in real.items()},
        curve=[(u, machine.usd_per_busy_hour(u)) for u in _GRID],
        rents=real,
        sensitivity={
            name: [_from(machine, usd * factor) for factor in SENSITIVITY]
            for name, usd in real.items()
        },
    )


def month_cost(
    *,
    compute_usd: Decimal,
    storage_gb: Decimal | None = None,
    usd_per_gb_month: Decimal | None = None,
    network_usd: Decimal | None = None,
    people_hours: Decimal = Decimal(0),
    usd_per_people_hour: Decimal = Decimal(0),
    ownership_usd: Decimal = Decimal(0),
) -> MonthCost:
    """Put a month together; what is not given stays unknown.

    `network_usd` is what `TransferRate.usd` says of the traffic that was measured, `ownership_usd`
    what owned machines cost in the month, working or not, and is then not in `compute_usd`.
    """
    stored = (
        None if storage_gb is None or usd_per_gb_month is None else storage_gb * usd_per_gb_month
    )
    return MonthCost(
        compute_usd=compute_usd,
        storage_usd=stored,
        network_usd=network_usd,
        people_usd=people_hours * usd_per_people_hour,
        ownership_usd=ownership_usd,
    )


def _from(machine: OwnedMachine, usd: Decimal) -> Decimal | None:
    idle = machine.power_usd_per_hour(Decimal(0))
    gain = usd - machine.power_usd_per_hour() + idle
    if gain <= 0:
        return None
    share = (machine.fixed_usd_per_hour() + idle) / gain
    return share if share <= 1 else None


def _share(share: Decimal | None) -> str:
    return "never" if share is None else f"{share:.0%}"
