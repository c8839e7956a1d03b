"""Measures the built-in GPT on one device, so that `rayburst hardware` need not assume a share.

    seen = probe_gpt(GPTConfig(n_layer=12, n_embd=768, n_head=12), ProbeSetup(precision="bf16"))
    print(seen.table()); seen.utilisation, seen.option

One optimiser step: forward, backward, AdamW. Useful FLOPs are the model's own count (PaLM, appendix
B), so the share is what that paper calls model FLOPs utilisation. The peak is the data sheet's
where the GPU is known; elsewhere, on a CPU, what a large matrix multiplication reaches here.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from rayburst.cost.accelerators import ACCELERATORS, PRECISIONS
from rayburst.cost.memory import Transformer
from rayburst.cost.probe import probe
from rayburst.errors import PriceError
from rayburst.report.tables import Table
from rayburst.train.gpt import GPT, GPTConfig

_TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_GIB = 2**30


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeSetup:
    """How a step is done. `steps` are timed, after two that are not."""

    micro_batch: int = 1
    precision: str = "bf16"
    steps: int = 8

    def __post_init__(self) -> None:
        if self.precision not in _TYPES:
            raise PriceError(f"precision={self.precision!r}: one of {', '.join(PRECISIONS)}")
        if self.micro_batch < 1 or self.steps < 1:
            raise PriceError(
                f"micro_batch={self.micro_batch}, steps={self.steps}: both are 1 or more"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeSeen:
    """What one device did.

    Attributes:
        accelerator: its name in `ACCELERATORS`; "" for one that is not in it.
        peak_flops: FLOP/s; `peak_is` says where the number is from.
    """

    device: str
    accelerator: str
    precision: str
    parameters: int
    tokens_per_s: float
    flops_per_s: float
    peak_flops: float
    peak_is: str

    @property
    def utilisation(self) -> float:
        """Useful FLOPs as a share of the peak."""
        return self.flops_per_s / self.peak_flops

    @property
    def option(self) -> str:
        """What `rayburst hardware` takes; "" where the catalogue does not know the device."""
        return f"--utilisation {self.accelerator}={self.utilisation:.2f}" * bool(self.accelerator)

    def table(self) -> Table:
        """One row."""
        row = (
            self.device,
            self.precision,
            f"{self.parameters:,}",
            f"{self.tokens_per_s:,.0f}",
            f"{self.flops_per_s / 1e12:.3f}",
            f"{self.utilisation:.1%}",
        )
        columns = ("device", "precision", "parameters", "tokens/s", "useful TFLOP/s", "of peak")
        return Table("probe", columns, [row], f"peak: {self.peak_is}")

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return asdict(self) | {"utilisation": self.utilisation, "option": self.option}


def probe_gpt(config: GPTConfig, setup: ProbeSetup, *, device: str | None = None) -> ProbeSeen:
    """Train a fresh model for a few steps on random tokens.

    Args:
        device: "cuda" or "cpu"; by default the GPU where there is one.

    Raises:
        PriceError: the device is not there.
    """
    where = _device(device)
    torch.manual_seed(0)
    model = GPT(config).to(where)
    optimizer = torch.optim.AdamW(model.parameters(), fused=where.type == "cuda")
    dtype = _TYPES[setup.precision]
    shape = (setup.micro_batch, config.block_size)
    tokens = torch.randint(config.vocab_size, shape, device=where)

    def step() -> None:
        with torch.autocast(where.type, dtype=dtype, enabled=setup.precision != "fp32"):
            logits, _ = model(tokens)
            loss: torch.Tensor = GPT.loss(logits, tokens)
        torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    formula = Transformer(
        parameters=model.parameter_count,
        layers=config.n_layer,
        width=config.n_embd,
        heads=config.n_head,
        vocabulary=config.vocab_size,
    )
    useful = formula.flops_per_token(config.block_size) * tokens.numel()
    wait = _synchroniser(where)
    seen = probe(
        step, clock=time.perf_counter, steps=setup.steps, synchronise=wait, useful_flops=useful
    )
    name, accelerator = _named(where)
    peak = ACCELERATORS[accelerator].peak_flops.get(setup.precision) if accelerator else None
    told = f"{accelerator}'s data sheet"
    if peak is None:
        peak, told = _matmul_flops(where, dtype, wait), "a matrix multiplication, measured here"
    return ProbeSeen(
        device=name,
        accelerator=accelerator,
        precision=setup.precision,
        parameters=model.parameter_count,
        tokens_per_s=seen.flops_per_s / formula.flops_per_token(config.block_size),
        flops_per_s=seen.flops_per_s,
        peak_flops=peak,
        peak_is=told,
    )


def accelerator_named(device: str, memory_bytes: int) -> str:
    """The name in `ACCELERATORS` of a GPU as its driver calls it; "" when it is none of them."""
    words = device.replace("-", " ").split()
    for name in sorted(ACCELERATORS, key=len, reverse=True):
        family, _, gib = name.partition("-")
        if family in words and (not gib or (gib == "80") == (memory_bytes > 60 * _GIB)):
            return name
    return ""


def _device(given: str | None) -> torch.device:
    if given is None:
        given = "cuda" if torch.cuda.is_available() else "cpu"
    if given == "cuda" and not torch.cuda.is_available():
        raise PriceError("device='cuda': this process has no GPU; on a cluster ask Ray for one")
    return torch.device(given)


def _named(device: torch.device) -> tuple[str, str]:
    if device.type != "cuda":
        return "CPU", ""
    facts = torch.cuda.get_device_properties(device)
    return facts.name, accelerator_named(facts.name, facts.total_memory)


def _synchroniser(device: torch.device) -> Callable[[], object]:
    return torch.cuda.synchronize if device.type == "cuda" else lambda: None


def _matmul_flops(
    device: torch.device, dtype: torch.dtype, wait: Callable[[], object], size: int = 1024
) -> float:
    a = torch.randn(size, size, device=device).to(dtype)
    out = torch.empty_like(a)

    def multiply() -> None:
        torch.matmul(a, a, out=out)

    seen = probe(multiply, clock=time.perf_counter, synchronise=wait, useful_flops=2.0 * size**3)
    return seen.flops_per_s
