"""What spot machines cost over time, as EC2 records it. Pure.

    history = SpotHistory.parse(Path("p3.2xlarge.json").read_text(), name="p3.2xlarge.json")
    history.at("us-east-1f", t)                      # Decimal, or None before the first record
    history.pieces("us-east-1f", start, end)         # [(start, end, price), ...]

A price holds from its record until the next one of the same zone; before the first it is unknown.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from itertools import pairwise

from rayburst.cost.prices import Offer, Price
from rayburst.errors import PriceError
from rayburst.fleet.spec import Market

Piece = tuple[float, float, Decimal | None]
LINUX = "Linux/UNIX"


@dataclass(frozen=True, kw_only=True, slots=True)
class SpotHistory:
    """Prices of one machine type by zone: (unix seconds, USD per hour), ascending."""

    name: str
    sku: str
    by_zone: Mapping[str, Sequence[tuple[float, Decimal]]]

    @classmethod
    def parse(cls, text: str, *, name: str, product: str = LINUX) -> SpotHistory:
        """Read the output of `aws ec2 describe-spot-price-history`. Raises PriceError."""
        try:
            rows = json.loads(text)["SpotPriceHistory"]
            mine = [row for row in rows if row["ProductDescription"] == product]
            skus = {row["InstanceType"] for row in mine}
            by_zone: dict[str, list[tuple[float, Decimal]]] = {}
            for row in mine:
                at = datetime.fromisoformat(row["Timestamp"]).timestamp()
                zone = by_zone.setdefault(row["AvailabilityZone"], [])
                zone.append((at, Decimal(row["SpotPrice"])))
        except (ValueError, KeyError, TypeError, ArithmeticError) as error:
            raise PriceError(
                f"{name} is no spot price history ({error!r}); expected what `aws ec2 "
                "describe-spot-price-history --output json` prints"
            ) from error
        if len(skus) != 1:
            raise PriceError(
                f"{name} has {product} prices of {', '.join(sorted(skus)) or 'no machine type'}; "
                "give a file of one machine type"
            )
        return cls(
            name=name, sku=skus.pop(), by_zone={z: sorted(found) for z, found in by_zone.items()}
        )

    def at(self, zone: str, t: float) -> Decimal | None:
        """The price in force at `t` (unix seconds); None before the first record."""
        series = self._series(zone)
        place = bisect_right(series, t, key=lambda record: record[0])
        return series[place - 1][1] if place else None

    def pieces(self, zone: str, start: float, end: float) -> list[Piece]:
        """[start, end) cut where the price changes; the pieces cover it without a gap."""
        series = self._series(zone)
        cuts = [start, *(t for t, _ in series if start < t < end), end]
        return [(a, b, self.at(zone, a)) for a, b in pairwise(cuts) if b > a]

    def latest(self) -> Iterator[Offer]:
        """The last known price of every zone, as offers."""
        for zone, series in sorted(self.by_zone.items()):
            at, usd = series[-1]
            day = datetime.fromtimestamp(at, tz=UTC).date()
            price = Price(usd_per_hour=usd, as_of=day, source=self.name)
            yield Offer(
                provider="aws",
                region=zone[:-1],
                zone=zone,
                sku=self.sku,
                prices={str(Market.SPOT): price},
            )

    def _series(self, zone: str) -> Sequence[tuple[float, Decimal]]:
        if zone not in self.by_zone:
            known = ", ".join(sorted(self.by_zone))
            raise PriceError(f"{self.name} has no zone {zone!r}; it has {known}")
        return self.by_zone[zone]
