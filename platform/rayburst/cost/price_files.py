"""Prices from files of others: SkyPilot's catalogue, EC2's spot price history, your own CSV.

    read_prices(Path("vms.csv"), provider="aws", as_of=date(2026, 11, 1))
    read_prices(Path("p3.2xlarge.json"))           # EC2's own spot price history
    read_prices(Path("contract.csv"))              # columns: see OWN_COLUMNS

The format is seen from the content. A cell that is empty is unknown. What cannot be read is refused
with its line; a file is taken whole or not at all.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from datetime import UTC, date, datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from rayburst.cost.on_prem import OwnedMachine
from rayburst.cost.prices import Catalogue, Offer, Price
from rayburst.cost.spot_history import SpotHistory
from rayburst.errors import PriceError
from rayburst.fleet.spec import Market

OWN_COLUMNS = (
    *("provider", "region", "zone", "sku", "cpus", "memory_gib", "gpus", "gpu", "gpu_memory_gib"),
    *("on_prem_usd_per_hour", "spot_usd_per_hour", "on_demand_usd_per_hour", "as_of"),
)
OWNERSHIP_COLUMNS = tuple(part.name for part in fields(OwnedMachine))
_SKYPILOT_COLUMNS = {"InstanceType", "AcceleratorName", "Price", "SpotPrice", "Region"}
_PRICE_COLUMNS = {
    Market.ON_PREM: "on_prem_usd_per_hour",
    Market.SPOT: "spot_usd_per_hour",
    Market.ON_DEMAND: "on_demand_usd_per_hour",
}
Row = Mapping[str, str]


def read_prices(path: Path, *, provider: str | None = None, as_of: date | None = None) -> Catalogue:
    """Read a file of prices, whatever its format.

    Args:
        provider: whose prices they are, for SkyPilot's files; by default the name of the folder.
        as_of: the day they are of, where the file does not say; by default its modification date.

    Raises:
        PriceError: the file cannot be used.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        day = as_of or datetime.fromtimestamp(path.stat().st_mtime, tz=UTC).date()
    except (OSError, UnicodeDecodeError) as error:
        raise PriceError(f"{path} cannot be read: {error}") from error
    if text.lstrip().startswith(("{", "[")):
        return _from_json(text, path)
    rows = list(csv.DictReader(text.splitlines()))
    columns = set(rows[0]) if rows else set()
    if columns >= _SKYPILOT_COLUMNS:
        name = provider or path.resolve().parent.name
        return _read(path, "SkyPilot catalogue", rows, lambda row: _skypilot(row, name, day))
    known = {*OWN_COLUMNS, *OWNERSHIP_COLUMNS}
    if not rows or "sku" not in columns or columns - known:
        found = ", ".join(sorted(map(str, columns))) or "none"
        raise PriceError(
            f"{path} is no file of prices: its columns are {found}; its own may be "
            f"{', '.join(OWN_COLUMNS)}, and for machines you own {', '.join(OWNERSHIP_COLUMNS)}"
        )
    return _read(path, path.name, rows, lambda row: _own(row, path.name, day))


def _from_json(text: str, path: Path) -> Catalogue:
    if "SpotPriceHistory" in text[:200]:
        history = SpotHistory.parse(text, name=path.name)
        return Catalogue(
            offers=tuple(history.latest()),
            sources={path.name: {"licence": "unknown", "note": "EC2's spot price history"}},
        )
    try:
        is_catalogue = "offers" in json.loads(text)
    except ValueError as error:
        raise PriceError(f"{path} is no JSON: {error}") from error
    if not is_catalogue:
        raise PriceError(f"{path} holds neither a SpotPriceHistory nor a catalogue's offers")
    return Catalogue.parse(text)


def _read(
    path: Path, source: str, rows: list[dict[str, str]], one: Callable[[Row], Offer | None]
) -> Catalogue:
    offers: dict[tuple[str, str, str, str], Offer] = {}
    for line, row in enumerate(rows, start=2):
        try:
            offer = one(row)
        except (PriceError, ValueError, InvalidOperation, KeyError, TypeError) as error:
            raise PriceError(f"{path}, line {line}: {error}") from error
        if offer is not None:
            if offer.key in offers:
                raise PriceError(f"{path}, line {line}: {' '.join(offer.key)} is there twice")
            offers[offer.key] = offer
    return Catalogue(
        offers=tuple(offers.values()),
        sources={source: {"licence": "as its file says", "note": str(path.name)}},
    )


def _skypilot(row: Row, provider: str, day: date) -> Offer | None:
    """A row of SkyPilot's vms.csv; None for one without a machine (an accelerator alone)."""
    if not row["InstanceType"]:
        return None
    prices = _prices(
        {Market.ON_DEMAND: row["Price"], Market.SPOT: row["SpotPrice"]}, "SkyPilot catalogue", day
    )
    count = _number(row["AcceleratorCount"])
    return Offer(
        provider=provider,
        region=row["Region"],
        zone=row.get("AvailabilityZone") or "",
        sku=row["InstanceType"],
        cpus=_number(row["vCPUs"]),
        memory_gib=_number(row["MemoryGiB"]),
        gpus=int(count or 0),
        gpu=row["AcceleratorName"] if count else "",
        prices=prices,
    )


def _own(row: Row, source: str, day: date) -> Offer:
    told = date.fromisoformat(row["as_of"]) if row.get("as_of") else day
    given = {market: row.get(column) or "" for market, column in _PRICE_COLUMNS.items()}
    owned = _ownership(row)
    if owned:
        if given[Market.ON_PREM]:
            raise PriceError("give on_prem_usd_per_hour or what it is made of, not both")
        given[Market.ON_PREM] = str(OwnedMachine(**owned).usd_per_hour())
    prices = _prices(given, source, told)
    gpus = _number(row.get("gpus") or "")
    return Offer(
        provider=row.get("provider") or "on-prem",
        region=row.get("region") or "",
        zone=row.get("zone") or "",
        sku=row["sku"],
        cpus=_number(row.get("cpus") or ""),
        memory_gib=_number(row.get("memory_gib") or ""),
        gpus=int(gpus or 0),
        gpu=row.get("gpu") or "",
        gpu_memory_gib=_number(row.get("gpu_memory_gib") or ""),
        prices=prices,
    )


def _prices(given: Mapping[Market, str], source: str, as_of: date) -> dict[str, Price]:
    """What is given and is a price: an empty cell is unknown, and so is SkyPilot's 0."""
    found: dict[str, Price] = {}
    for market, text in given.items():
        usd = _decimal(text)
        if usd is not None and usd != 0:
            found[str(market)] = Price(usd_per_hour=usd, as_of=as_of, source=source)
    return found


def _decimal(text: str) -> Decimal | None:
    if not text or text.strip().lower() in ("unknown", "nan"):
        return None
    value = Decimal(text)
    if not value.is_finite() or value < 0:
        raise PriceError(f"{text} is no price: give USD for an hour, or leave the cell empty")
    return value


def _number(text: str) -> float | None:
    return float(text) if text else None


def read_owned(path: Path, sku: str) -> OwnedMachine:
    """A machine you own, from the columns that say what it is made of.

    Raises:
        PriceError: the file has no such machine, or only its price.
    """
    read_prices(path)  # every problem of the file is told first
    rows = list(csv.DictReader(path.read_text(encoding="utf-8-sig").splitlines()))
    owned = {row["sku"]: row for row in rows if row.get("capital_usd")}
    if sku not in owned:
        raise PriceError(
            f"{path} does not say what {sku!r} is made of ({', '.join(OWNERSHIP_COLUMNS)}); "
            f"it does of {', '.join(owned) or 'none'}"
        )
    return OwnedMachine(**_ownership(owned[sku]))


def _ownership(row: Row) -> dict[str, Decimal]:
    return {name: Decimal(row[name]) for name in OWNERSHIP_COLUMNS if row.get(name)}


def own_template() -> str:
    """A CSV with every column that `read_prices` takes, and two rows to copy."""
    columns = (*OWN_COLUMNS, *OWNERSHIP_COLUMNS)
    return "\n".join(_lines(columns)) + "\n"


def _lines(columns: tuple[str, ...]) -> Iterator[str]:
    yield ",".join(columns)
    rented: dict[str, Any] = {"provider": "aws", "region": "us-east-1", "sku": "p5.48xlarge"}
    rented |= {"on_demand_usd_per_hour": "41.28", "as_of": "2026-10-01"}
    owned: dict[str, Any] = {"provider": "on-prem", "region": "rack-1", "sku": "h100-8"}
    owned |= {"cpus": 192, "memory_gib": 2048, "gpus": 8, "gpu": "H100", "gpu_memory_gib": 80}
    owned |= {"capital_usd": 260000, "life_years": 4, "power_kw": 8, "idle_kw": 2, "pue": 1.4}
    owned |= {"usd_per_kwh": 0.15, "staff_usd_per_year": 9000, "as_of": "2026-10-01"}
    for row in (rented, owned):
        yield ",".join(str(row.get(name, "")) for name in columns)
