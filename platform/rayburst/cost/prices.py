"""What machines, storage and traffic cost, who says so, and since when. Pure but for reading files.

    prices = Catalogue.load()                      # the project's own, cost/catalogue.json
    prices = prices.plus(read_prices(Path("contract.csv")))
    offer = prices.offer("p3.2xlarge")
    offer.usd_per_hour("on-demand"), offer.usd_per_hour("spot")     # Decimal, or None: unknown

Every price carries its source and its date. A price that no source gives is None and stays None. Of
two prices for one machine, place and market the one that was added later holds: a contract beats a
list. Prices are Decimals, because sums of them have to be right to the cent.

It deliberately does not know fleets, jobs, or what a price will be tomorrow.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from decimal import Decimal
from importlib.resources import files
from typing import Any

from rayburst.errors import PriceError
from rayburst.fleet.spec import Market

STALE_DAYS = 90
"""A price older than this is told of: spot moves within weeks, lists a few times a year."""

_PLAUSIBLE_CHEAP = Decimal("0.02")  # of on-demand; a spot price below that is a slip of a digit


@dataclass(frozen=True, kw_only=True, slots=True)
class Price:
    """One price of one machine for one hour, and who says so."""

    usd_per_hour: Decimal
    as_of: date
    source: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Offer:
    """A machine type at one place, and its prices by market. What is not known is None.

    Attributes:
        zone: where a price holds for one zone only; "" for the whole region.
        gpu_memory_gib: of one GPU, as programs see it.
        prices: by market ("on-prem", "spot", "on-demand").
    """

    provider: str
    region: str
    sku: str
    zone: str = ""
    cpus: float | None = None
    memory_gib: float | None = None
    gpus: int = 0
    gpu: str = ""
    gpu_memory_gib: float | None = None
    prices: Mapping[str, Price] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str, str, str]:
        return (self.provider, self.region, self.zone, self.sku)

    def usd_per_hour(self, market: str) -> Decimal | None:
        """The price in this market; None where nobody gave one."""
        price = self.prices.get(market)
        return None if price is None else price.usd_per_hour

    def best(self) -> tuple[str, Decimal] | None:
        """The cheapest known (market, USD per hour); None when no price is known."""
        known = [(price.usd_per_hour, market) for market, price in self.prices.items()]
        return None if not known else (min(known)[1], min(known)[0])


@dataclass(frozen=True, kw_only=True, slots=True)
class StorageRate:
    """What one GB (10^9 bytes) costs for a month. `kind`: block, object, object-cool, -archive."""

    provider: str
    region: str
    sku: str
    kind: str
    usd_per_gb_month: Decimal
    as_of: date
    source: str


@dataclass(frozen=True, kw_only=True, slots=True)
class TransferRate:
    """What traffic out of a region costs a month, in steps.

    Attributes:
        to: "internet", or "region" for another region of the same cloud.
        free_gb: not paid for, each month.
        steps: (up to so many paid GB in all, or None for the rest; USD per GB), ascending.
    """

    provider: str
    region: str
    to: str
    free_gb: Decimal
    steps: tuple[tuple[Decimal | None, Decimal], ...]
    as_of: date
    source: str

    def usd(self, gb: Decimal) -> Decimal:
        """The price of so many GB in one month."""
        left, done, total = max(gb - self.free_gb, Decimal(0)), Decimal(0), Decimal(0)
        for up_to, rate in self.steps:
            part = left if up_to is None else min(left, up_to - done)
            total += part * rate
            left, done = left - part, done + part
        return total


@dataclass(frozen=True, kw_only=True, slots=True)
class Catalogue:
    """Offers and rates of many places. Make it with `load()` and `plus()`."""

    offers: Sequence[Offer] = ()
    storage: Sequence[StorageRate] = ()
    transfer: Sequence[TransferRate] = ()
    sources: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @classmethod
    def load(cls) -> Catalogue:
        """The project's own catalogue; `sources` holds licence and origin of every price in it."""
        return cls.parse((files("rayburst.cost") / "catalogue.json").read_text())

    @classmethod
    def parse(cls, text: str) -> Catalogue:
        """Read the JSON that catalogue.json holds. Raises PriceError."""
        try:
            raw = json.loads(text, parse_float=Decimal)
            return cls(
                offers=tuple(_offer(row) for row in raw["offers"]),
                storage=tuple(StorageRate(**_dated(row)) for row in raw["storage"]),
                transfer=tuple(_transfer(row) for row in raw["transfer"]),
                sources=raw["sources"],
            )
        except (ValueError, KeyError, TypeError) as error:
            raise PriceError(f"no catalogue ({error!r}); see cost/catalogue.json") from error

    def plus(self, *others: Catalogue) -> Catalogue:
        """This and others; where two have a price for the same, the later one holds."""
        offers = {offer.key: offer for offer in self.offers}
        for other in others:
            for offer in other.offers:
                offers[offer.key] = _joined(offers.get(offer.key), offer)
        parts = (self, *others)
        return Catalogue(
            offers=tuple(offers.values()),
            storage=tuple(rate for part in parts for rate in part.storage),
            transfer=tuple(rate for part in parts for rate in part.transfer),
            sources={name: told for part in parts for name, told in part.sources.items()},
        )

    def find(
        self,
        *,
        sku: str | None = None,
        provider: str | None = None,
        region: str | None = None,
        gpu: str | None = None,
    ) -> list[Offer]:
        """Offers that match all that is given; the cheapest first, unknown prices last."""
        wanted = {"sku": sku, "provider": provider, "region": region, "gpu": gpu}
        found = [
            offer
            for offer in self.offers
            if all(
                value is None or getattr(offer, name).lower() == value.lower()
                for name, value in wanted.items()
            )
        ]
        return sorted(found, key=_cheapest_first)

    def offer(self, sku: str, *, provider: str | None = None, region: str | None = None) -> Offer:
        """The one offer of a machine type; of several places the cheapest.

        Raises:
            PriceError: there is none; names the nearest.
        """
        found = self.find(sku=sku, provider=provider, region=region)
        if found:
            return found[0]
        known = {offer.sku for offer in self.offers}
        near = difflib.get_close_matches(sku, known, n=3) or sorted(known)[:8]
        place = " ".join(word for word in (provider, region) if word)
        raise PriceError(
            f"no prices for {sku}{f' at {place}' if place else ''}; known are "
            f"{', '.join(near)} and others: `rayburst prices ls`"
        )

    def problems(self) -> list[str]:
        """What cannot be true: zeros, spot above on-demand, machines without CPUs, no source."""
        return [*_offer_problems(self), *_rate_problems(self)]

    def warnings(self, today: date) -> list[str]:
        """Sources whose prices are older than STALE_DAYS, each with how old."""
        oldest: dict[tuple[str, str], date] = {}
        for key, as_of in _dates(self):
            oldest[key] = min(as_of, oldest.get(key, as_of))
        return [
            f"prices of {what} from {source} are of {as_of}, {(today - as_of).days} days old: "
            "import newer ones"
            for (what, source), as_of in sorted(oldest.items())
            if (today - as_of).days > STALE_DAYS
        ]


def _cheapest_first(offer: Offer) -> tuple[bool, Decimal, tuple[str, str, str, str]]:
    best = offer.best()
    return (best is None, best[1] if best else Decimal(0), offer.key)


def _joined(old: Offer | None, new: Offer) -> Offer:
    """The new offer, with what it does not say taken from the old one."""
    if old is None:
        return new
    specs = ("cpus", "memory_gib", "gpus", "gpu", "gpu_memory_gib")
    told = {name: getattr(new, name) or getattr(old, name) for name in specs}
    return replace(new, prices={**old.prices, **new.prices}, **told)


def _dates(catalogue: Catalogue) -> Iterator[tuple[tuple[str, str], date]]:
    for offer in catalogue.offers:
        for price in offer.prices.values():
            yield ("machines", price.source), price.as_of
    for rate in catalogue.storage:
        yield ("storage", rate.source), rate.as_of
    for flow in catalogue.transfer:
        yield ("traffic", flow.source), flow.as_of


def _offer_problems(catalogue: Catalogue) -> Iterator[str]:
    seen: set[tuple[str, str, str, str]] = set()
    for offer in catalogue.offers:
        name = " ".join(part for part in offer.key if part)
        if offer.key in seen:
            yield f"{name}: listed twice"
        seen.add(offer.key)
        for market, price in offer.prices.items():
            if price.usd_per_hour <= 0:
                yield f"{name}: {market} {price.usd_per_hour} USD/h: no machine is free"
            if price.source not in catalogue.sources:
                yield f"{name}: nothing is known of its source {price.source!r}"
        yield from _against_each_other(name, offer)
        if offer.cpus is not None and offer.cpus <= 0:
            yield f"{name}: {offer.cpus} CPUs"
        if bool(offer.gpus) != bool(offer.gpu):
            yield f"{name}: {offer.gpus} GPUs of type {offer.gpu!r}"


def _against_each_other(name: str, offer: Offer) -> Iterator[str]:
    spot, listed = offer.usd_per_hour(Market.SPOT), offer.usd_per_hour(Market.ON_DEMAND)
    if spot is None or listed is None:
        return
    if spot > listed:
        yield f"{name}: spot {spot} is dearer than on-demand {listed}"
    elif spot < _PLAUSIBLE_CHEAP * listed:
        yield f"{name}: spot {spot} is under {_PLAUSIBLE_CHEAP:.0%} of on-demand {listed}"


def _rate_problems(catalogue: Catalogue) -> Iterator[str]:
    for rate in catalogue.storage:
        if rate.usd_per_gb_month <= 0:
            yield f"{rate.provider} {rate.sku}: {rate.usd_per_gb_month} USD a GB-month"
    for flow in catalogue.transfer:
        bounds = [up_to for up_to, _ in flow.steps]
        if any(usd <= 0 for _, usd in flow.steps) or not bounds or bounds[-1] is not None:
            yield f"{flow.provider} to {flow.to}: steps cost something and the last has no end"
        known = [bound for bound in bounds if bound is not None]
        if known != sorted(known):
            yield f"{flow.provider} to {flow.to}: steps are out of order"


def _offer(row: Mapping[str, Any]) -> Offer:
    data = _dated(row)
    as_of, source = data.pop("as_of"), data.pop("source")
    rates = data.pop("usd_per_hour")
    for name in ("cpus", "memory_gib", "gpu_memory_gib"):
        data[name] = None if data[name] is None else float(data[name])
    prices = {
        str(Market(market)): Price(usd_per_hour=Decimal(usd), as_of=as_of, source=source)
        for market, usd in rates.items()
    }
    return Offer(prices=prices, **data)


def _transfer(row: Mapping[str, Any]) -> TransferRate:
    data = _dated(row)
    steps = tuple(
        (None if s["up_to_gb"] is None else Decimal(s["up_to_gb"]), Decimal(s["usd_per_gb"]))
        for s in data.pop("steps")
    )
    return TransferRate(steps=steps, free_gb=Decimal(data.pop("free_gb")), **data)


def _dated(row: Mapping[str, Any]) -> dict[str, Any]:
    return {**row, "as_of": date.fromisoformat(row["as_of"])}
