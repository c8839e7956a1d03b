"""`rayburst prices`: the catalogue, files of your own over it, and whether they can be true."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from rayburst.cost.prices import Catalogue, Offer
from rayburst.errors import PriceError
from rayburst.report.tables import Table

app = typer.Typer(no_args_is_help=True, help="What machines, storage and traffic cost.")
_out = Console(highlight=False)

Files = Annotated[
    list[Path] | None,
    typer.Option(
        "--file",
        help="Prices of your own over the catalogue: a CSV, SkyPilot's vms.csv, or EC2's spot "
        "price history. May be given again; the last one holds.",
    ),
]


@app.command("ls")
def list_prices(
    sku: Annotated[str | None, typer.Option(help="Only this machine type.")] = None,
    gpu: Annotated[str | None, typer.Option(help="Only machines with this GPU, as H100.")] = None,
    provider: Annotated[str | None, typer.Option(help="Only aws, azure, gcp, oci, ...")] = None,
    region: Annotated[str | None, typer.Option(help="Only this region.")] = None,
    file: Files = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List machines and their prices, the cheapest first; unknown stays unknown.

    `rayburst prices ls --gpu H100`
    """
    catalogue = with_files(file or [])
    found = catalogue.find(sku=sku, gpu=gpu, provider=provider, region=region)
    if as_json:
        typer.echo(json.dumps([_as_json(offer) for offer in found], indent=1))
        return
    _out.width = max(_out.width, 120)  # a price that is cut off is another price
    _out.print(_table(found))
    for warning in replace(catalogue, offers=found, storage=(), transfer=()).warnings(date.today()):
        _out.print(f"[yellow]old:[/] {warning}")


@app.command("check")
def check(
    file: Annotated[list[Path] | None, typer.Argument(help="Files of prices.")] = None,
) -> None:
    """Check prices for what cannot be true, and say what is old.

    `rayburst prices check contract.csv`
    """
    catalogue = with_files(file or [])
    problems = catalogue.problems()
    for warning in catalogue.warnings(date.today()):
        _out.print(f"[yellow]old:[/] {warning}")
    if problems:
        raise PriceError("\n".join(("these prices cannot be right:", *problems)))
    known = sum(len(offer.prices) for offer in catalogue.offers)
    _out.print(f"{len(catalogue.offers)} machines, {known} prices: nothing impossible among them")


@app.command("template")
def template() -> None:
    """Print a CSV to fill in: contract prices, and machines you own.

    `rayburst prices template > mine.csv`, then `rayburst prices ls --file mine.csv`
    """
    from rayburst.cost.price_files import own_template

    typer.echo(own_template(), nl=False)


def with_files(paths: list[Path]) -> Catalogue:
    """The catalogue with files of the user's over it."""
    from rayburst.cost.price_files import read_prices

    return Catalogue.load().plus(*(read_prices(path) for path in paths))


def _table(offers: list[Offer]) -> Table:
    columns = ("machine", "at", "CPUs", "GiB", "GPUs", "on-prem", "spot", "on-demand", "as of")
    rows = [
        (
            offer.sku,
            f"{offer.provider} {offer.zone or offer.region}".strip(),
            _short(offer.cpus),
            _short(offer.memory_gib),
            f"{offer.gpus} x {offer.gpu}" if offer.gpus else "",
            *(_usd(offer, market) for market in ("on-prem", "spot", "on-demand")),
            str(min((p.as_of for p in offer.prices.values()), default="")),
        )
        for offer in offers
    ]
    return Table("prices, USD an hour", columns, rows, "blank: unknown")


def _usd(offer: Offer, market: str) -> str:
    usd = offer.usd_per_hour(market)
    return "" if usd is None else f"{usd:.4f}"


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


def _as_json(offer: Offer) -> dict[str, object]:
    return {
        "provider": offer.provider,
        "region": offer.region,
        "zone": offer.zone,
        "sku": offer.sku,
        "cpus": offer.cpus,
        "memory_gib": offer.memory_gib,
        "gpus": offer.gpus,
        "gpu": offer.gpu,
        "gpu_memory_gib": offer.gpu_memory_gib,
        "prices": {
            market: {
                "usd_per_hour": str(price.usd_per_hour),
                "as_of": str(price.as_of),
                "source": price.source,
            }
            for market, price in offer.prices.items()
        },
    }
