"""What accelerators can do on paper: their makers' data sheets. The share you reach is measured.

ACCELERATORS["A100-80"].peak_flops["bf16"]      # 3.12e14: dense, without sparsity
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rayburst.cost.prices import Offer
from rayburst.errors import PriceError

_TERA = 1e12
PRECISIONS = ("fp32", "fp16", "bf16")


@dataclass(frozen=True, kw_only=True, slots=True)
class Accelerator:
    """One GPU.

    Attributes:
        peak_flops: dense matrix multiplication by precision, FLOP/s; a precision that the hardware
            has no units for is absent.
        memory_bytes_per_s: bandwidth of its own memory.
    """

    name: str
    peak_flops: Mapping[str, float]
    memory_bytes_per_s: float


def _gpu(name: str, fp32: float, fp16: float, bf16: float | None, gb_per_s: float) -> Accelerator:
    peaks = {"fp32": fp32 * _TERA, "fp16": fp16 * _TERA}
    if bf16 is not None:
        peaks["bf16"] = bf16 * _TERA
    return Accelerator(name=name, peak_flops=peaks, memory_bytes_per_s=gb_per_s * 1e9)


# NVIDIA's data sheets: tensor cores, dense; fp32 is what plain CUDA cores do.
ACCELERATORS: Mapping[str, Accelerator] = {
    gpu.name: gpu
    for gpu in (
        _gpu("T4", 8.1, 65, None, 320),
        _gpu("V100", 15.7, 125, None, 900),
        _gpu("A10", 31.2, 125, 125, 600),
        _gpu("A10G", 31.5, 70, 70, 600),
        _gpu("L4", 30.3, 121, 121, 300),
        _gpu("L40S", 91.6, 362, 362, 864),
        _gpu("A100-40", 19.5, 312, 312, 1555),
        _gpu("A100-80", 19.5, 312, 312, 2039),
        _gpu("H100", 66.9, 989, 989, 3350),
    )
}


def accelerator_of(offer: Offer) -> Accelerator:
    """The accelerator of a machine. Raises PriceError for one that is not known, or has none."""
    name = offer.gpu
    if name == "A100":
        name = "A100-80" if (offer.gpu_memory_gib or 0) > 60 else "A100-40"
    if name not in ACCELERATORS:
        raise PriceError(
            f"{offer.sku} has {name or 'no GPU'}; what is known of is {', '.join(ACCELERATORS)}"
        )
    return ACCELERATORS[name]
