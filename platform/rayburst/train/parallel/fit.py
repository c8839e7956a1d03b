"""Which layout a model gets on which devices. Pure.

    plan = choose(shape, [Node(name="a", devices=8, memory_bytes=80 * 2**30)], FitOptions(...))
    plan.layout, plan.devices, plan.memory

Simple before clever: copies, then sharded copies, then tensor groups within a node, then a pipeline
across nodes; each is taken only when what stands before it does not fit. Narayanan et al. 2021,
section 3, likewise keep tensor groups in a node and send pipelines across. Shard groups stay in a
rack, so a model that is too large for its racks gets a pipeline over them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from rayburst.errors import LayoutError
from rayburst.train.parallel.layout import Layout
from rayburst.train.parallel.memory import Batch, MemoryUse, ModelShape, memory_of
from rayburst.train.parallel.topology import Device, assemble, copies

__all__ = ["FitOptions", "LayoutPlan", "Node", "choose"]

_GIB = 2**30
_LARGEST_ADVICE = 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """A machine: its devices, the memory of each in bytes, and its rack by label."""

    name: str
    devices: int
    memory_bytes: int
    rack: str = ""

    def __post_init__(self) -> None:
        if self.devices < 1 or self.memory_bytes < 1:
            raise LayoutError(f"{self}: give devices of 1 or more and memory_bytes of one device")


@dataclass(frozen=True, kw_only=True, slots=True)
class FitOptions:
    """global_batch: samples a step over all copies. micro_batch: samples of a copy at once, 0: all.

    reserve: share of each device's memory that is left to the runtime, the network's buffers and
    passing values.
    """

    precision: str
    global_batch: int
    micro_batch: int = 0
    recompute: bool = False
    reserve: float = 0.1

    def __post_init__(self) -> None:
        if self.precision not in ("fp32", "bf16", "fp16") or not 0 <= self.reserve < 1:
            raise LayoutError(f"{self}: precision is fp32, bf16 or fp16, reserve from 0 to below 1")
        if self.global_batch < 1 or self.micro_batch < 0:
            raise LayoutError(f"{self}: global_batch is 1 or more, micro_batch 0 or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class LayoutPlan:
    """A layout, the device of each rank, and the use of the fullest device.

    idle: devices that the layout leaves out. room_bytes: memory of a device after the reserve.
    """

    layout: Layout
    devices: tuple[Device, ...]
    idle: tuple[Device, ...]
    memory: MemoryUse
    room_bytes: int

    def __str__(self) -> str:
        use, room = self.memory.total_bytes / _GIB, self.room_bytes / _GIB
        idle = f", {len(self.idle)} devices idle" if self.idle else ""
        return f"{self.layout}: {use:.2f} of {room:.2f} GiB on the fullest device{idle}"


def choose(shape: ModelShape, nodes: Sequence[Node], options: FitOptions) -> LayoutPlan:
    """The simplest layout that fits. LayoutError says what is short and what would fit."""
    if not nodes:
        raise LayoutError(
            "no nodes: give at least one Node(name=..., devices=..., memory_bytes=...)"
        )
    found = _first_fit(shape, nodes, options)
    if found is None:
        raise LayoutError(_refusal(shape, nodes, options))
    return found


def _first_fit(shape: ModelShape, nodes: Sequence[Node], options: FitOptions) -> LayoutPlan | None:
    room = _room(nodes, options)
    devices = _devices(nodes)
    for layout in _candidates(shape, nodes, options.global_batch):
        use = _use(shape, layout, options)
        if use.total_bytes > room:
            continue
        placed = assemble(layout, devices)
        if placed is not None:
            return LayoutPlan(
                layout=layout,
                devices=tuple(placed[0]),
                idle=tuple(placed[1]),
                memory=use,
                room_bytes=room,
            )
    return None


def _room(nodes: Sequence[Node], options: FitOptions) -> int:
    return int(min(node.memory_bytes for node in nodes) * (1 - options.reserve))


def _devices(nodes: Sequence[Node]) -> list[Device]:
    return [
        Device(rack=node.rack, node=node.name, index=i)
        for node in nodes
        for i in range(node.devices)
    ]


def _use(shape: ModelShape, layout: Layout, options: FitOptions) -> MemoryUse:
    rows = -(-options.global_batch // layout.copies)
    batch = Batch(rows=rows, micro_batch=options.micro_batch, recompute=options.recompute)
    return memory_of(shape, layout, batch, options.precision)


def _candidates(shape: ModelShape, nodes: Sequence[Node], global_batch: int) -> Iterator[Layout]:
    """Simplest first, and of equal kinds those that leave no device idle.

    A copy has a sample for each stage, or it could not fill its pipeline.
    """
    devices = _devices(nodes)
    largest = max(node.devices for node in nodes)
    for pipeline in range(1, min(shape.blocks, len(devices)) + 1):
        for tensor in range(1, largest + 1):
            if shape.units % tensor or (tensor > 1 and shape.units == 1):
                continue
            cells = [
                Layout(tensor=tensor, pipeline=pipeline, shard=shard)
                for shard in range(1, len(devices) // (tensor * pipeline) + 1)
            ]
            counted = [
                replace(cell, data=data)
                for cell in cells
                if (
                    data := min(len(copies(cell, devices)), global_batch // (pipeline * cell.shard))
                )
            ]
            most = max((layout.world for layout in counted), default=0)
            yield from sorted(counted, key=lambda found: (found.world < most, found.shard))


def _refusal(shape: ModelShape, nodes: Sequence[Node], options: FitOptions) -> str:
    room = _room(nodes, options)
    candidates = list(_candidates(shape, nodes, options.global_batch))
    if not candidates:
        return f"global_batch={options.global_batch} leaves no copy a sample: give a larger one"
    uses = [(_use(shape, layout, options), layout) for layout in candidates]
    best, layout = min(uses, key=lambda pair: pair[0].total_bytes)
    devices = len(_devices(nodes))
    return (
        f"a model of {shape.parameters / 1e6:,.1f} M parameters does not fit {devices} devices of "
        f"{room / _GIB:.2f} GiB (after a reserve of {options.reserve:.0%}): the least is "
        f"{best.total_bytes / _GIB:.2f} GiB a device, with {layout}. "
        f"What would fit: {'; '.join(_advice(shape, nodes, options, best))}"
    )


def _advice(
    shape: ModelShape, nodes: Sequence[Node], options: FitOptions, best: MemoryUse
) -> list[str]:
    """What the same call could be changed to, easiest first."""
    found = []
    changes = {
        "micro_batch=1": replace(options, micro_batch=1),
        "recompute=True": replace(options, recompute=True),
        "recompute=True and micro_batch=1": replace(options, recompute=True, micro_batch=1),
    }
    for text, changed in changes.items():
        if changed != options and _first_fit(shape, nodes, changed) is not None:
            found.append(text)
            break
    more = _enough_nodes(shape, nodes, options)
    if more is not None:
        found.append(f"{more} nodes like {nodes[0].name}")
    needed = best.total_bytes / (1 - options.reserve) / _GIB
    found.append(f"devices of {needed:.2f} GiB")
    return found


def _enough_nodes(shape: ModelShape, nodes: Sequence[Node], options: FitOptions) -> int | None:
    """How many nodes like the first one would do, in powers of two."""
    count = 1
    while count * nodes[0].devices <= min(_LARGEST_ADVICE, options.global_batch * nodes[0].devices):
        like = [replace(nodes[0], name=f"{nodes[0].name}-{i}") for i in range(count)]
        if count > len(nodes) and _first_fit(shape, like, options) is not None:
            return count
        count *= 2
    return None
