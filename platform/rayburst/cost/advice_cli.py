"""`rayburst hardware` and `rayburst tco`: which machine for a model, and whether to own it.

The functions are typer commands; `cli.py` mounts them.
"""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from rayburst.cost.prices_cli import Files, with_files
from rayburst.errors import PriceError

_out = Console(highlight=False)


def hardware(
    params: Annotated[float, typer.Option(help="Parameters of the model, as 7e9.")],
    layers: Annotated[int, typer.Option(help="Its layers.")],
    width: Annotated[int, typer.Option(help="Its hidden width.")],
    heads: Annotated[int, typer.Option(help="Its attention heads.")],
    tokens: Annotated[float, typer.Option(help="Tokens to train on, as 2e10.")],
    sequence: Annotated[int, typer.Option(help="Tokens of one sample.")] = 2048,
    micro_batch: Annotated[int, typer.Option(help="Samples a GPU takes at once.")] = 1,
    precision: Annotated[str, typer.Option(help="fp32, fp16 or bf16.")] = "bf16",
    recompute: Annotated[
        bool, typer.Option("--recompute", help="Compute activations again in backward.")
    ] = False,
    utilisation: Annotated[
        list[str] | None,
        typer.Option(help="Measured share of the peak by GPU, as A100-80=0.41; may be repeated."),
    ] = None,
    gpu: Annotated[str | None, typer.Option(help="Only machines with this GPU.")] = None,
    market: Annotated[str | None, typer.Option(help="Only this market's prices.")] = None,
    file: Files = None,
) -> None:
    """Rank machines for training a model: what fits, what it costs, how long it takes.

    `rayburst hardware --params 7e9 --layers 32 --width 4096 --heads 32 --tokens 2e10`
    """
    from rayburst.cost.hardware import rank_for_training, table
    from rayburst.cost.memory import TrainingSetup, Transformer

    model = Transformer(parameters=params, layers=layers, width=width, heads=heads)
    setup = TrainingSetup(
        micro_batch=micro_batch, tokens=sequence, precision=precision, recomputes=recompute
    )
    measured = {name: float(share) for name, share in _pairs("--utilisation", utilisation)}
    choices = rank_for_training(
        model,
        setup,
        offers=with_files(file or []).find(gpu=gpu),
        tokens=tokens,
        utilisation=measured,
        market=market,
    )
    if not choices:
        raise PriceError("no machine with a known price and GPU matches; see `rayburst prices ls`")
    _out.width = max(_out.width, 120)
    _out.print(table(choices))


def tco(
    sku: Annotated[str, typer.Argument(help="A machine you own, from your file.")],
    file: Annotated[Path, typer.Option(help="Your CSV: see `rayburst prices template`.")],
    against: Annotated[list[str], typer.Option(help="A machine to rent instead; may be repeated.")],
    useful: Annotated[
        list[str] | None,
        typer.Option(help="Share of paid hours that are work, by market, as spot=0.93."),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Write a page with a picture here.")] = None,
) -> None:
    """Own or rent: from which utilisation on a machine of your own is cheaper.

    `rayburst tco h100-8 --file mine.csv --against p5.48xlarge`
    """
    from rayburst.cost.price_files import read_owned
    from rayburst.cost.tco import break_even

    machine = read_owned(file, sku)
    catalogue = with_files([file])
    shares = {market: Decimal(share) for market, share in _pairs("--useful", useful)}
    rents, goodput, unpriced = {}, {}, []
    for other in against:
        offer = catalogue.offer(other)
        if not offer.prices:
            unpriced.append(other)
        for market, price in offer.prices.items():
            name = f"{other} {market}"
            rents[name] = price.usd_per_hour
            goodput[name] = shares.get(market, Decimal(1))
    if not rents:
        raise PriceError(
            f"no price is known of {', '.join(unpriced)}, so there is no rent to compare with: put "
            f"one in {file}, or name others with --against (`rayburst prices ls` lists them)"
        )
    point = break_even(machine, rents=rents, useful=goodput)
    _out.print(point.table())
    if unpriced:
        _out.print(f"left out, since no price is known: {', '.join(unpriced)}")
    if plot is not None:
        from rayburst.report.curves import own_or_rent_page

        plot.write_text(own_or_rent_page(point, sku))


def _pairs(option: str, given: list[str] | None) -> list[tuple[str, Decimal]]:
    found = []
    for text in given or []:
        name, _, share = text.partition("=")
        try:
            found.append((name, Decimal(share)))
        except InvalidOperation as error:
            raise PriceError(
                f"{option} {text}: give a name and a share, as A100-80=0.41"
            ) from error
    return found
