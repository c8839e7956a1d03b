"""How much memory a model takes on each device of a layout. Pure.

    use = memory_of(shape, Layout(shard=4), Batch(rows=8), "bf16")
    use.total_bytes, use.activations_bytes

Weights, gradients and AdamW state by what a rank holds of them (Rajbhandari et al. 2020, ZeRO,
https://arxiv.org/abs/1910.02054, section 3: 4 + 4 + 8 bytes a parameter in float32, divided by the
shard group). Activations are what autograd keeps for the backward pass, block by block, divided by
the tensor group where matrices split (Korthikanti et al. 2022, https://arxiv.org/abs/2205.05198,
section 4: s b h (10 + 24 / t) bytes in 16 bits without the attention matrix, of which dropout masks
are 2; fused attention keeps no matrix, and dropout 0 no masks). Under 1F1B stage i of p keeps at
most p - i parts of the batch (Narayanan et al. 2021, section 2.2).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from rayburst.errors import LayoutError
from rayburst.train.parallel.layout import Layout

__all__ = ["Batch", "MemoryUse", "ModelShape", "Part", "memory_of", "stage_memory"]

_FLOAT32 = 4
_ADAM = 8  # two float32 moments
_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A piece of a model: an end or one block. Parameters are counts; the others elements a sample.

    split: parameters that tensor parallelism divides; whole: those that it does not.
    kept_split, kept_whole: elements kept for the backward pass, in the precision computed in.
    kept_full: elements kept in float32 whatever the precision.
    kept_residual: elements of the residual stream that norms keep: float32 under autocast.
    """

    split: int = 0
    whole: int = 0
    kept_split: float = 0
    kept_whole: float = 0
    kept_full: float = 0
    kept_residual: float = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelShape:
    """What memory depends on. `units`: heads, which a tensor group must divide.

    carried, output: elements a sample between blocks, and of the model's output.
    tied: parameters of the output end that are the input end's: held once where both are.
    """

    embed: Part
    block: Part
    unembed: Part
    blocks: int
    carried: float
    output: float = 0
    units: int = 1
    tied: int = 0

    @property
    def parameters(self) -> int:
        """How many, tied ones once."""
        parts = [self.embed, self.unembed, *[self.block] * self.blocks]
        return sum(part.split + part.whole for part in parts) - self.tied


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Samples of one copy in a step, how many go through at once (0: all), and what is kept."""

    rows: int
    micro_batch: int = 0
    recompute: bool = False

    def __post_init__(self) -> None:
        if self.rows < 1 or self.micro_batch < 0:
            raise LayoutError(f"{self}: give rows of 1 or more and micro_batch of 0 or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryUse:
    """Bytes on one device at most.

    copies: weights in a short format, or gathered from other shards. activations: what is kept for
    the backward pass, and the output with its gradient. adds_up: gradients are there while
    activations grow, as they are from the second part of a batch on.
    """

    weights_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    copies_bytes: int
    activations_bytes: int
    adds_up: bool

    @property
    def total_bytes(self) -> int:
        """The peak. In one backward pass activations go as gradients come."""
        moving = max(self.activations_bytes, self.gradients_bytes)
        if self.adds_up:
            moving = self.activations_bytes + self.gradients_bytes
        return self.weights_bytes + self.optimizer_bytes + self.copies_bytes + moving


def memory_of(shape: ModelShape, layout: Layout, batch: Batch, precision: str) -> MemoryUse:
    """The use of the stage that needs most."""
    stages = (
        stage_memory(shape, layout, batch, precision, stage=i) for i in range(layout.pipeline)
    )
    return max(stages, key=lambda use: use.total_bytes)


def stage_memory(
    shape: ModelShape, layout: Layout, batch: Batch, precision: str, *, stage: int
) -> MemoryUse:
    """The use of each device of one pipeline stage."""
    parts = _parts(shape, layout.pipeline, stage)
    held = sum(_held(part, layout.tensor) for part in parts)
    if stage == 0 and layout.pipeline == 1:
        held -= ceil(shape.tied / layout.tensor)
    is_sharded = layout.is_sharded
    gathers_once = is_sharded and layout.pipeline > 1
    mine = ceil(held / layout.shard)
    rows, in_flight = _in_flight(batch, layout, stage)
    is_ddp = layout.data > 1 and not is_sharded and layout.pipeline == 1
    return MemoryUse(
        weights_bytes=_FLOAT32 * mine,
        # a pipeline reduces after its last part, so gradients are whole until then
        gradients_bytes=_FLOAT32 * (held if gathers_once else mine),
        optimizer_bytes=_ADAM * mine,
        copies_bytes=_copies(shape, parts, layout, precision),
        activations_bytes=_activations(shape, parts, layout, batch, precision, (rows, in_flight)),
        adds_up=is_ddp or batch.rows > rows,
    )


def _copies(shape: ModelShape, parts: list[Part], layout: Layout, precision: str) -> int:
    """Bytes of weights beside those that are held: gathered ones, or autocast's short ones."""
    short = _BYTES[precision]
    if not layout.is_sharded:
        # autocast makes short copies of matrices: about all that splits
        matrices = sum(ceil(part.split / layout.tensor) for part in parts)
        return 0 if precision == "fp32" else short * matrices
    if layout.pipeline > 1:
        return short * sum(_held(part, layout.tensor) for part in parts)
    ends = sum(_held(part, layout.tensor) for part in parts if part is not shape.block)
    ends -= ceil(shape.tied / layout.tensor)
    return short * (ends + 2 * _held(shape.block, layout.tensor))


def _activations(
    shape: ModelShape,
    parts: list[Part],
    layout: Layout,
    batch: Batch,
    precision: str,
    flow: tuple[int, int],
) -> int:
    """Bytes kept by all parts of the batch that are on their way, `flow`: (samples, parts)."""
    rows, in_flight = flow
    kept = {part: _kept(part, layout, precision) for part in parts}
    working = 2 * _FLOAT32 * shape.output if shape.unembed in kept else 0.0
    if not batch.recompute:
        return round(rows * (in_flight * sum(kept[part] for part in parts) + working))
    carried = shape.carried * (_BYTES[precision] if layout.is_sharded else _FLOAT32)
    blocks = sum(part is shape.block for part in parts)
    ends = sum(kept[part] for part in parts if part is not shape.block)
    again = max(working, kept.get(shape.block, 0.0) - carried)
    # while a block is computed again, the gradients of the one after it are not cut yet
    reducing = _FLOAT32 * _held(shape.block, layout.tensor) if layout.is_sharded else 0
    return round(rows * (in_flight * (blocks * carried + ends) + again)) + reducing


def _parts(shape: ModelShape, stages: int, stage: int) -> list[Part]:
    each, more = divmod(shape.blocks, stages)
    parts = [shape.block] * (each + (stage < more))
    if stage == 0:
        parts.insert(0, shape.embed)
    if stage == stages - 1:
        parts.append(shape.unembed)
    return parts


def _held(part: Part, tensor: int) -> int:
    return ceil(part.split / tensor) + part.whole


def _in_flight(batch: Batch, layout: Layout, stage: int) -> tuple[int, int]:
    """Samples in one part of the batch, and how many parts a stage keeps at once."""
    if layout.pipeline == 1:
        return min(batch.micro_batch or batch.rows, batch.rows), 1
    rows = batch.micro_batch or max(1, batch.rows // layout.pipeline)
    parts = max(1, batch.rows // rows)
    return rows, min(parts, layout.pipeline - stage)


def _kept(part: Part, layout: Layout, precision: str) -> float:
    """Bytes a sample that one part keeps for its backward pass."""
    short = _BYTES[precision]
    residual = short if layout.is_sharded else _FLOAT32  # FSDP2's policy makes the stream short too
    return (
        short * (part.kept_split / layout.tensor + part.kept_whole)
        + residual * part.kept_residual
        + _FLOAT32 * part.kept_full
    )
