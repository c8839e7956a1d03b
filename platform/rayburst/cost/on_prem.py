"""What an hour of a machine you own costs: capital, power, space, staff. Pure.

    OwnedMachine(capital_usd=Decimal(160_000), life_years=Decimal(4), power_kw=Decimal("6.5"),
                 usd_per_kwh=Decimal("0.14"), pue=Decimal("1.4")).usd_per_hour()

Straight-line depreciation over the hours of its life, whether it works or not: an idle hour of a
machine that was bought costs as much as a busy one, but for the power. What an hour of work costs
at a given utilisation is `usd_per_busy_hour`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from decimal import Decimal

from rayburst.errors import PriceError

HOURS_PER_YEAR = Decimal(8760)


@dataclass(frozen=True, kw_only=True, slots=True)
class OwnedMachine:
    """One machine that was bought. Every number is the owner's.

    Attributes:
        capital_usd: what it cost to buy, with its share of rack and switches.
        resale_usd: what it brings at the end of its life.
        life_years: until it is replaced.
        power_kw: what it draws under load; `idle_kw` when it only runs.
        pue: power of the room over power of the machines (cooling); 1 is none.
        staff_usd_per_year: its share of the people who look after it.
        space_usd_per_year: its share of rent or colocation, and of maintenance contracts.
    """

    capital_usd: Decimal
    life_years: Decimal
    power_kw: Decimal = Decimal(0)
    idle_kw: Decimal = Decimal(0)
    usd_per_kwh: Decimal = Decimal(0)
    pue: Decimal = Decimal(1)
    staff_usd_per_year: Decimal = Decimal(0)
    space_usd_per_year: Decimal = Decimal(0)
    resale_usd: Decimal = Decimal(0)

    def __post_init__(self) -> None:
        for part in fields(self):
            if getattr(self, part.name) < 0:
                raise PriceError(f"{part.name}={getattr(self, part.name)}: give 0 or more")
        if self.life_years == 0 or self.pue < 1:
            raise PriceError(
                f"life_years={self.life_years}, pue={self.pue}: a life is above 0, a PUE 1 or more"
            )

    def fixed_usd_per_hour(self) -> Decimal:
        """What an hour costs before it does anything: wear, people, space."""
        wear = (self.capital_usd - self.resale_usd) / self.life_years
        return (wear + self.staff_usd_per_year + self.space_usd_per_year) / HOURS_PER_YEAR

    def power_usd_per_hour(self, load: Decimal = Decimal(1)) -> Decimal:
        """Power of one hour, of which the share `load` is worked."""
        drawn_kw = load * self.power_kw + (1 - load) * self.idle_kw
        return drawn_kw * self.pue * self.usd_per_kwh

    def usd_per_hour(self, load: Decimal = Decimal(1)) -> Decimal:
        """One hour, fixed cost and power."""
        return self.fixed_usd_per_hour() + self.power_usd_per_hour(load)

    def usd_per_busy_hour(self, utilisation: Decimal) -> Decimal:
        """One hour of work, when the machine works this share of all hours (above 0, up to 1)."""
        if not 0 < utilisation <= 1:
            raise PriceError(f"utilisation {utilisation}: give a share above 0 and up to 1, as 0.6")
        return self.usd_per_hour(utilisation) / utilisation
