"""The ledger as a FOCUS file, which FinOps tools of all clouds read. Pure.

    text, left_out = to_focus(entries, fleet="lab", region="us-east-1")
    Path("cost.csv").write_text(text)

FOCUS 1.2 (FinOps Open Cost and Usage Specification, focus.finops.org), its Cost and Usage dataset,
as CSV. One row a line of the ledger; job, tenant, model and purpose are tags. List and contracted
cost are the same as the cost, because the ledger knows one price. What has no known price has no
place in a format that wants a cost in every row: it is counted and left out, never written as zero.
`scripts/focus-validator FILE` holds a file to the specification.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from decimal import Decimal

from rayburst.cost.entries import Entry, usd_of
from rayburst.fleet.spec import Market

_UNITS: Mapping[str, tuple[str, Decimal]] = {
    "ms": ("Hours", Decimal(3_600_000)),
    "byte-seconds": ("GB-Hours", Decimal(3_600 * 10**9)),
    "bytes read": ("GB", Decimal(10**9)),
    "bytes written": ("GB", Decimal(10**9)),
}
"""The ledger's units as FOCUS writes them, and how many of ours are one of theirs."""
_NULLS = (
    *("AvailabilityZone", "CapacityReservationId", "CapacityReservationStatus", "ChargeClass"),
    *("CommitmentDiscountCategory", "CommitmentDiscountId", "CommitmentDiscountName"),
    *("CommitmentDiscountQuantity", "CommitmentDiscountStatus", "CommitmentDiscountType"),
    *("CommitmentDiscountUnit", "InvoiceId", "SubAccountId", "SubAccountName", "SubAccountType"),
)
Row = dict[str, str]


def to_focus(entries: Iterable[Entry], *, fleet: str, region: str = "") -> tuple[str, int]:
    """(CSV text, node-milliseconds and other units left out because their price is unknown)."""
    rows: list[Row] = []
    left_out = 0
    for entry in entries:
        if entry.nano_usd is None:
            left_out += entry.quantity
        else:
            rows.append(_row(entry, fleet, region))
    columns = sorted(rows[0]) if rows else []
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue(), left_out


def _row(entry: Entry, fleet: str, region: str) -> Row:
    line = entry.line
    return {
        **dict.fromkeys(_NULLS, ""),
        **_money(entry),
        **_times(line.start_ms, line.end_ms),
        **_what(entry),
        "BillingAccountId": fleet,
        "BillingAccountName": fleet,
        "BillingAccountType": "rayburst fleet",
        "InvoiceIssuerName": "rayburst",
        "ProviderName": "rayburst",
        "PublisherName": "rayburst",
        "RegionId": region,
        "RegionName": region,
        "Tags": json.dumps(_tags(entry)),
    }


def _money(entry: Entry) -> Row:
    """Four costs, two unit prices, and what they are of."""
    usd = _plain(usd_of(entry.nano_usd or 0))
    unit, size = _UNITS.get(entry.line.unit, ("Units", Decimal(1)))
    quantity = Decimal(entry.quantity) / size
    is_node = entry.line.unit == "ms"
    price = entry.line.usd_per_hour if is_node else _per_unit(entry, quantity)
    return {
        "BilledCost": usd,
        "EffectiveCost": usd,
        "ListCost": usd,
        "ContractedCost": usd,
        "ListUnitPrice": price,
        "ContractedUnitPrice": price,
        "PricingQuantity": _plain(quantity),
        "PricingUnit": unit,
        "ConsumedQuantity": _plain(quantity),
        "ConsumedUnit": unit,
        "BillingCurrency": "USD",
        "PricingCurrency": "USD",
        "PricingCurrencyListUnitPrice": price,
        "PricingCurrencyContractedUnitPrice": price,
        "PricingCurrencyEffectiveCost": usd,
    }


def _per_unit(entry: Entry, quantity: Decimal) -> str:
    return _plain(usd_of(entry.nano_usd or 0) / quantity) if quantity else "0"


def _times(start_ms: int, end_ms: int) -> Row:
    start = datetime.fromtimestamp(start_ms / 1000, tz=UTC)
    month = start.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    after = month.replace(year=month.year + month.month // 12, month=month.month % 12 + 1)
    return {
        "ChargePeriodStart": _iso(start),
        "ChargePeriodEnd": _iso(datetime.fromtimestamp(end_ms / 1000, tz=UTC)),
        "BillingPeriodStart": _iso(month),
        "BillingPeriodEnd": _iso(after),
    }


def _what(entry: Entry) -> Row:
    line = entry.line
    is_node = line.unit == "ms"
    category, sub = ("Compute", "Virtual Machines") if is_node else ("Storage", "Object Storage")
    if line.purpose == "transfer":
        category, sub = "Networking", "Network Connectivity"
    sku = line.pool or line.purpose
    return {
        "ChargeCategory": "Usage",
        "ChargeDescription": f"{line.purpose} on {line.node}" if is_node else line.purpose,
        "ChargeFrequency": "Usage-Based",
        "PricingCategory": "Dynamic" if line.market == Market.SPOT else "Standard",
        "ResourceId": line.node or sku,
        "ResourceName": line.node or sku,
        "ResourceType": f"{line.market} node" if is_node else line.purpose,
        "ServiceCategory": category,
        "ServiceSubcategory": sub,
        "ServiceName": "rayburst nodes" if is_node else f"rayburst {line.purpose}",
        "SkuId": sku,
        "SkuPriceId": f"{sku}-{line.usd_per_hour or line.unit}",
        "SkuMeter": "node-hours" if is_node else line.unit,
        "SkuPriceDetails": "",
    }


def _tags(entry: Entry) -> Mapping[str, str]:
    owner = entry.line.owner
    told = {"job": owner.job, "tenant": owner.tenant, "model": owner.model}
    return {**{k: v for k, v in told.items() if v}, "purpose": entry.line.purpose}


def _iso(t: datetime) -> str:
    return t.strftime("%Y-%m-%dT%H:%M:%SZ")


def _plain(number: Decimal) -> str:
    """Without an exponent, which not every reader of CSV takes."""
    return f"{number:f}"
