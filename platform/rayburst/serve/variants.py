"""Which variant of a model answers, by what was measured of each. Pure.

    choice = choose(version.variants, Wanted(slo_ms=100, agreement=0.98))
    choice.variant, choice.batch, choice.per_s          # "int8", 16, 410.0
    ladder(version.variants, Wanted(slo_ms=100))        # the most faithful, then faster ones

A request that just missed a batch waits for it and then for its own, so a variant keeps a promise
with the largest batch that takes half of it (as scaling.py counts), and answers `batch / latency`
requests a second at it. Among the variants that agree with fp32 as often as is asked and keep the
promise, the most faithful one is taken unless another answers at least `WORTH` times as much: a
little more speed in a noisy measurement is no reason to answer differently.

What was not measured is never chosen but where nothing was: then fp32 is, and says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rayburst.errors import VariantError
from rayburst.models.manifest import Measured, Variant

__all__ = ["WORTH", "Choice", "Wanted", "choose", "ladder"]

WORTH = 1.1
_EXACT = "fp32"


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """What a deployment promises. `agreement` is the least share of fp32's answers.

    `most_bytes`: the weights fit in so many; None: any size does.
    """

    slo_ms: float
    agreement: float = 0.98
    max_batch: int = 32
    most_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.slo_ms <= 0 or self.max_batch < 1:
            raise VariantError(
                f"slo_ms={self.slo_ms:g}, max_batch={self.max_batch}: give more than 0 ms and a "
                "batch of 1 or more"
            )
        if not 0 <= self.agreement <= 1:
            raise VariantError(
                f"agreement={self.agreement:g}: give a share from 0 to 1, for example 0.98"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """The variant to serve; the batch with which it keeps the promise, and requests a second then.

    Both are None for one that was never measured.
    """

    variant: str
    batch: int | None
    per_s: float | None
    why: str


def choose(variants: Sequence[Variant], wanted: Wanted) -> Choice:
    """The variant to serve. VariantError when none keeps what is wanted: says what each lacks."""
    if all(v.measured is None for v in variants) and any(v.name == _EXACT for v in variants):
        return Choice(variant=_EXACT, batch=None, per_s=None, why="nothing was measured")
    fit = _fit(variants, wanted)
    best = fit[0]
    for other in fit[1:]:
        if (other.per_s or 0) >= WORTH * (best.per_s or 0):
            best = other
    return best


def ladder(variants: Sequence[Variant], wanted: Wanted) -> tuple[Choice, ...]:
    """The most faithful variant that keeps the promise, then those to fall back on under overload.

    Each answers at least `WORTH` times as much as the last and agrees less often; one that another
    beats in both is left out. None agrees less than is wanted, so falling back never breaks that
    floor. VariantError as `choose`.
    """
    if all(v.measured is None for v in variants):
        return (choose(variants, wanted),)
    agrees = {v.name: v.measured.agreement for v in variants if v.measured is not None}
    first, *others = sorted(
        _fit(variants, wanted), key=lambda c: (-agrees[c.variant], -(c.per_s or 0))
    )
    rungs = [first]
    for other in others:
        if (other.per_s or 0) >= WORTH * (rungs[-1].per_s or 0):
            rungs.append(other)
    return tuple(rungs)


def _fit(variants: Sequence[Variant], wanted: Wanted) -> list[Choice]:
    """Those that keep what is wanted, the most faithful first."""
    fit: list[tuple[float, int, str, Choice]] = []
    lacks: list[str] = []
    for variant in variants:
        measured = variant.measured
        if measured is None:
            lacks.append(f"{variant.name} was not measured")
            continue
        batch, per_s = _capacity(measured, wanted)
        alone_ms = min(measured.latency, key=lambda row: row.batch).p95_ms
        if measured.agreement < wanted.agreement:
            lacks.append(f"{variant.name} agrees {measured.agreement:.2%}")
        elif wanted.most_bytes is not None and variant.size_bytes > wanted.most_bytes:
            lacks.append(f"{variant.name} has {variant.size_bytes} bytes")
        elif batch == 0:
            lacks.append(f"{variant.name} takes twice {alone_ms:.1f} ms alone")
        else:
            why = f"agrees {measured.agreement:.2%}, {per_s:.0f}/s in batches of {batch}"
            choice = Choice(variant=variant.name, batch=batch, per_s=per_s, why=why)
            fit.append((-measured.agreement, variant.size_bytes, variant.name, choice))
    if not fit:
        room = "" if wanted.most_bytes is None else f" in {wanted.most_bytes} bytes"
        raise VariantError(
            f"no variant keeps {wanted.slo_ms:g} ms with an agreement of {wanted.agreement:.2%}"
            f"{room}: {'; '.join(lacks)}. Promise less, or publish other variants: "
            "python jobs/quantize.py --model NAME@VERSION"
        )
    return [choice for *_, choice in sorted(fit, key=lambda one: one[:3])]


def _capacity(measured: Measured, wanted: Wanted) -> tuple[int, float]:
    """The best batch that keeps the promise, and its requests a second; (0, 0) without one."""
    kept = [
        (1000 * row.batch / row.median_ms, row.batch)
        for row in measured.latency
        if 2 * row.p95_ms <= wanted.slo_ms and row.batch <= wanted.max_batch
    ]
    per_s, batch = max(kept, default=(0.0, 0))
    return batch, per_s
