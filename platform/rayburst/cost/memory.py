"""Whether a transformer fits: bytes of weights, gradients, optimiser and activations a GPU. Pure.

    need = training_memory(Transformer(parameters=7e9, layers=32, width=4096, heads=32),
                           Layout(sharded=8), TrainingSetup(micro_batch=1, tokens=4096))
    need.total_bytes, need.weights_bytes, need.activations_bytes

States as in ZeRO (Rajbhandari et al., SC'20, section 3), activations as in "Reducing Activation
Recomputation in Large Transformer Models" (Korthikanti et al., MLSys'23, table 2): a layer keeps
s·b·h·34 bytes in 16 bit, and 5·a·s²·b more where attention scores are kept (s tokens, b samples,
h width, a heads). Estimates without fragmentation: `RESERVE` of a GPU is held back for that.
"""

from __future__ import annotations

from dataclasses import dataclass

from rayburst.errors import PriceError

RESERVE = 0.08
"""Share of a GPU's memory that is not planned with: CUDA's context, buffers, fragments."""

_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}


@dataclass(frozen=True, kw_only=True, slots=True)
class Transformer:
    """A decoder. `parameters` in all; `vocabulary` sets the size of the last activations."""

    parameters: float
    layers: int
    width: int
    heads: int
    vocabulary: int = 32_000

    def flops_per_token(self, tokens: int) -> float:
        """Forward and backward of one token in a sequence of so many: 6 N + 12 L h s.

        The matrix multiplications of the parameters, and attention's (PaLM, appendix B).
        """
        return 6 * self.parameters + 12 * self.layers * self.width * tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """How a model lies over GPUs; their product is the number of GPUs.

    Attributes:
        copies: plain data parallel: each has everything.
        sharded: sharded data parallel (FSDP, ZeRO-3): states are cut in so many parts.
        tensor, pipeline: layers cut across, and dealt out.
    """

    copies: int = 1
    sharded: int = 1
    tensor: int = 1
    pipeline: int = 1

    def __post_init__(self) -> None:
        if min(self.copies, self.sharded, self.tensor, self.pipeline) < 1:
            raise PriceError(f"{self}: every part of a layout is 1 or more")

    @property
    def gpus(self) -> int:
        return self.copies * self.sharded * self.tensor * self.pipeline


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingSetup:
    """How a step is computed.

    Attributes:
        micro_batch: samples a GPU takes through at once. tokens: a sample's length.
        precision: of weights in use and activations; in 16 bit a master copy stays in fp32.
        optimiser_bytes: of state a parameter, in fp32: Adam 8, SGD with momentum 4, without 0.
        recomputes: activations of a layer are computed again in backward (full checkpointing).
        keeps_scores: attention writes its scores; flash attention does not.
    """

    micro_batch: int
    tokens: int
    precision: str = "bf16"
    optimiser_bytes: int = 8
    recomputes: bool = False
    keeps_scores: bool = False

    def __post_init__(self) -> None:
        if self.precision not in _BYTES:
            raise PriceError(f"precision {self.precision!r}: one of {', '.join(_BYTES)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Bytes on one GPU."""

    weights_bytes: float
    gradients_bytes: float
    optimiser_bytes: float
    activations_bytes: float

    @property
    def total_bytes(self) -> float:
        return (
            self.weights_bytes
            + self.gradients_bytes
            + self.optimiser_bytes
            + self.activations_bytes
        )

    def fits(self, gpu_memory_gib: float) -> bool:
        """Whether it fits a GPU of so much memory, with RESERVE of it held back."""
        return self.total_bytes <= gpu_memory_gib * 2**30 * (1 - RESERVE)


def training_memory(model: Transformer, layout: Layout, setup: TrainingSetup) -> Memory:
    """What one GPU needs to train."""
    here = model.parameters / (layout.tensor * layout.pipeline)
    shard = here / layout.sharded
    size = _BYTES[setup.precision]
    # sharded weights are gathered a layer at a time: one is in use, one on its way
    gathered = 0.0 if layout.sharded == 1 else 2 * here / max(model.layers / layout.pipeline, 1)
    master = 4 if size == 2 else 0
    return Memory(
        weights_bytes=(shard + gathered) * size,
        gradients_bytes=(shard + gathered / 2) * size,
        optimiser_bytes=shard * (setup.optimiser_bytes + master),
        activations_bytes=_activations(model, layout, setup),
    )


def serving_memory(model: Transformer, *, precision: str, tokens: int, at_once: int) -> Memory:
    """What one GPU needs to serve: weights, and keys and values of so many sequences at once."""
    size = _BYTES.get(precision, 1)  # int8 and fp8
    cache = 2 * model.layers * model.width * tokens * at_once * _BYTES.get(precision, 2)
    return Memory(
        weights_bytes=model.parameters * size,
        gradients_bytes=0.0,
        optimiser_bytes=0.0,
        activations_bytes=float(cache),
    )


def _activations(model: Transformer, layout: Layout, setup: TrainingSetup) -> float:
    here = setup.tokens * setup.micro_batch * model.width
    scale = _BYTES[setup.precision] / 2
    if setup.recomputes:
        layer = 2.0 * here * scale
    else:
        scores = 5.0 * model.heads * setup.tokens**2 * setup.micro_batch
        layer = (34.0 * here + (scores if setup.keeps_scores else 0.0)) * scale / layout.tensor
    # a pipeline's first stage has fewer layers and as many micro-batches more at once (1F1B)
    kept = model.layers * layer
    working = 34.0 * here * scale / layout.tensor if setup.recomputes else 0.0
    logits = 4.0 * setup.tokens * setup.micro_batch * model.vocabulary / layout.tensor
    return kept + working + logits
