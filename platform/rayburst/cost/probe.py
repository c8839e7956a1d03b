"""Measures what share of an accelerator's peak a model reaches: a few steps, FLOPs by torch.

    measured = probe(step, clock=time.perf_counter, synchronise=torch.cuda.synchronize)
    measured.utilisation(ACCELERATORS["A100-80"].peak_flops["bf16"])

`step()` does one whole optimiser step. Its FLOPs are counted once by torch's own counter, which
sees every matrix multiplication that runs, recomputed ones too; for the useful share give the
model's own count (`Transformer.flops_per_token`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from rayburst.errors import PriceError


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What a probe saw. `flops_per_step` counts what ran; `seconds` are of each timed step."""

    flops_per_step: float
    seconds: tuple[float, ...]

    @property
    def flops_per_s(self) -> float:
        """Of the median step."""
        return self.flops_per_step / median(self.seconds)

    def utilisation(self, peak_flops: float) -> float:
        """Share of a peak, in the same precision."""
        return self.flops_per_s / peak_flops


def probe(
    step: Callable[[], object],
    *,
    clock: Callable[[], float],
    steps: int = 8,
    warm_up: int = 2,
    synchronise: Callable[[], object] = lambda: None,
    useful_flops: float | None = None,
) -> Measured:
    """Run `step` a few times and time it.

    Args:
        clock: monotonic seconds. synchronise: waits for the device (torch.cuda.synchronize).
        useful_flops: FLOPs of one step by the model's formula, instead of counting them.
    """
    if steps < 1 or warm_up < 1:
        raise PriceError(f"steps={steps}, warm_up={warm_up}: both are 1 or more")
    flops = useful_flops if useful_flops is not None else _counted(step)
    for _ in range(warm_up):
        step()
    seconds = []
    for _ in range(steps):
        synchronise()
        began = clock()
        step()
        synchronise()
        seconds.append(clock() - began)
    return Measured(flops_per_step=flops, seconds=tuple(seconds))


def _counted(step: Callable[[], object]) -> float:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        step()
    return float(counter.get_total_flops())
