"""Which accelerator for this model: cost and time of training it, and what does not fit. Pure.

    ranked = rank_for_training(model, setup, offers=catalogue.find(gpu="A100"), tokens=2e10,
                               utilisation={"A100-80": 0.41})
    ranked[0].offer.sku, ranked[0].usd, ranked[0].hours

Cost of a useful FLOP = price / (GPUs x peak x utilisation). Utilisation is measured: the share of
the peak that a short run of this very model reaches (`cost/probe.py`). Where it was not measured
it is what the caller assumes, and the result says so. An offer without a price is left out; one
that the model does not fit stands below with the bytes it lacks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rayburst.cost.accelerators import accelerator_of
from rayburst.cost.memory import Layout, Memory, TrainingSetup, Transformer, training_memory
from rayburst.cost.prices import Offer
from rayburst.errors import PriceError
from rayburst.report import numbers
from rayburst.report.tables import Table

ASSUMED_UTILISATION = 0.35
"""Where nothing was measured: what large-scale runs publish lies between 0.3 and 0.5 of the peak
(PaLM 0.46, Llama 3 0.38 to 0.43); small models and slow links reach less."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """One machine type in one market, for one model.

    Attributes:
        machines: as many as the model needs to fit, with one layout that does.
        usd_per_exaflop: dollars for 10^18 useful FLOPs.
        hours, usd: for all tokens, on so many machines.
        lacks_bytes: on each GPU; 0 where it fits.
    """

    offer: Offer
    market: str
    machines: int
    layout: Layout
    memory: Memory
    utilisation: float
    is_measured: bool
    usd_per_exaflop: float
    hours: float
    usd: float
    lacks_bytes: float

    @property
    def fits(self) -> bool:
        return self.lacks_bytes == 0


def rank_for_training(
    model: Transformer,
    setup: TrainingSetup,
    *,
    offers: Sequence[Offer],
    tokens: float,
    utilisation: Mapping[str, float] | None = None,
    market: str | None = None,
    machines: int | None = None,
) -> list[Choice]:
    """Every offer with a known price and accelerator, the cheapest that fit first.

    Args:
        utilisation: measured, by accelerator (as in `accelerators.ACCELERATORS`).
        market: only this one; by default the cheapest known of each offer.
        machines: exactly so many; by default the fewest on which the model fits (up to 64).
    """
    found = []
    for offer in offers:
        priced = _price(offer, market)
        if priced is None or not offer.gpus or offer.gpu_memory_gib is None:
            continue
        try:
            choice = _choice(model, setup, offer, priced, tokens, utilisation or {}, machines)
        except PriceError:
            continue  # an accelerator nobody has figures of, or none with this precision
        found.append(choice)
    return sorted(found, key=lambda c: (not c.fits, c.usd if c.fits else c.lacks_bytes))


def table(choices: Sequence[Choice]) -> Table:
    """The choices as a table, those that do not fit below."""
    rows = [
        (
            f"{c.machines} x {c.offer.sku}",
            f"{c.offer.provider} {c.market}",
            f"{c.machines * c.offer.gpus} x {c.offer.gpu}",
            f"{c.utilisation:.0%}{'' if c.is_measured else ' assumed'}",
            f"{c.usd_per_exaflop:.3f}",
            numbers.seconds(c.hours * 3600) if c.fits else "",
            numbers.usd(c.usd) if c.fits else "",
            "" if c.fits else f"lacks {c.lacks_bytes / 2**30:.1f} GiB a GPU",
        )
        for c in choices
    ]
    columns = ("machines", "at", "GPUs", "of peak", "USD/exaFLOP", "time", "cost", "")
    return Table("training, the cheapest first", columns, rows)


def _price(offer: Offer, market: str | None) -> tuple[str, float] | None:
    if market is None:
        best = offer.best()
        return None if best is None else (best[0], float(best[1]))
    usd = offer.usd_per_hour(market)
    return None if usd is None else (market, float(usd))


def _choice(
    model: Transformer,
    setup: TrainingSetup,
    offer: Offer,
    priced: tuple[str, float],
    tokens: float,
    measured: Mapping[str, float],
    machines: int | None,
) -> Choice:
    gpu = accelerator_of(offer)
    if setup.precision not in gpu.peak_flops:
        raise PriceError(f"{gpu.name} has no {setup.precision}")
    share = measured.get(gpu.name, ASSUMED_UTILISATION)
    if not 0 < share <= 1:
        raise PriceError(f"utilisation {share} of {gpu.name}: a share above 0 and up to 1")
    count, layout, memory = _smallest_fit(model, setup, offer, machines)
    room = (offer.gpu_memory_gib or 0.0) * 2**30
    useful_per_s = count * offer.gpus * gpu.peak_flops[setup.precision] * share
    hours = tokens * model.flops_per_token(setup.tokens) / useful_per_s / 3600
    usd_per_hour = priced[1] * count
    fits = memory.fits(offer.gpu_memory_gib or 0.0)
    return Choice(
        offer=offer,
        market=priced[0],
        machines=count,
        layout=layout,
        memory=memory,
        utilisation=share,
        is_measured=gpu.name in measured,
        usd_per_exaflop=usd_per_hour / 3600 / useful_per_s * 1e18,
        hours=hours,
        usd=hours * usd_per_hour,
        lacks_bytes=0.0 if fits else max(memory.total_bytes - room * 0.92, 1.0),
    )


def _smallest_fit(
    model: Transformer, setup: TrainingSetup, offer: Offer, machines: int | None
) -> tuple[int, Layout, Memory]:
    """The fewest machines with a layout that fits; the last one tried where none does.

    States are sharded over all GPUs; tensor parallel stays inside a machine.
    """
    counts = (machines,) if machines else (1, 2, 4, 8, 16, 32, 64)
    tensors = [t for t in (1, 2, 4, 8) if offer.gpus % t == 0 and model.heads % t == 0]
    last: tuple[int, Layout, Memory] | None = None
    for count in counts:
        for tensor in tensors:
            layout = Layout(sharded=count * offer.gpus // tensor, tensor=tensor)
            memory = training_memory(model, layout, setup)
            last = (count, layout, memory)
            if memory.fits(offer.gpu_memory_gib or 0.0):
                return last
    if last is None:
        raise PriceError(f"{model.heads} heads cannot be dealt to {offer.gpus} GPUs")
    return last
