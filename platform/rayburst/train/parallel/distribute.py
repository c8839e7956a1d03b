"""Puts a layout on a stage: splits matrices, compiles blocks, shards or replicates.

    runs = distribute(stage, layout, mesh, precision="bf16")    # what runs the forward pass

The order is torch's own for these parts (torchtitan, Liang et al. 2024): tensor, then compile,
then FSDP2 or DDP around it.
"""

from __future__ import annotations

import warnings

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel

from rayburst.errors import LayoutError
from rayburst.train.parallel.layout import Layout
from rayburst.train.parallel.plan import Plan, Split
from rayburst.train.parallel.precision import compute_dtype, sharding_policy
from rayburst.train.parallel.stage import Stage

__all__ = ["distribute"]


def distribute(
    stage: Stage,
    layout: Layout,
    mesh: DeviceMesh | None,
    *,
    device: torch.device,
    precision: str,
    compile_backend: str | None = None,
) -> nn.Module:
    """`stage` in place on its devices, and the module to call. LayoutError if it cannot be cut.

    Weights on the meta device get memory here and no values: load a checkpoint into them.
    """
    if layout.tensor > 1 and mesh is not None:
        _split(stage.model, stage.plan, mesh["tensor"])
    if compile_backend is not None:
        for block in stage.blocks() or [stage.model]:
            block.compile(backend=compile_backend)
    sharded = layout.is_sharded and mesh is not None
    if sharded and mesh is not None:
        _shard(stage, layout, mesh, precision)
    else:
        stage.autocast = compute_dtype(precision)
    if any(p.is_meta for p in stage.parameters()):
        stage.to_empty(device=device)
        _tie(stage.model, stage.plan)
    stage.to(device)
    if sharded or mesh is None or layout.data == 1 or layout.pipeline > 1:
        return stage
    return DistributedDataParallel(
        stage, process_group=mesh["data"].get_group(), gradient_as_bucket_view=True
    )


def _shard(stage: Stage, layout: Layout, mesh: DeviceMesh, precision: str) -> None:
    group = mesh["data", "shard"] if layout.data > 1 else mesh["shard"]
    policy = sharding_policy(precision)
    # A pipeline runs its stage once for each part of the batch: gathering once is cheaper.
    free = layout.pipeline == 1
    # A split output layer's logits are a view of a DTensor; the loss changes nothing in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    for block in stage.blocks():
        fully_shard(block, mesh=group, mp_policy=policy, reshard_after_forward=free)
    fully_shard(stage, mesh=group, mp_policy=policy, reshard_after_forward=False)


def _split(model: nn.Module, plan: Plan, mesh: DeviceMesh) -> None:
    named = [(name, module) for name, module in model.named_modules() if plan.split_of(name)]
    if not plan.tensor:
        raise LayoutError(
            "tensor parallelism needs a plan that says how matrices split, for example "
            'Plan(..., tensor={"layers.*.up": "column", "layers.*.down": "row"})'
        )
    for name, module in named:
        split = plan.split_of(name)
        if split is not None and not isinstance(module, nn.Identity):
            _check_divides(name, module, split, mesh.size())
            parallelize_module(module, mesh, _style(split))
    _tie(model, plan)


def _style(split: Split) -> ParallelStyle:
    if split == "column":
        return ColwiseParallel()
    if split == "row":
        return RowwiseParallel()
    if split == "vocabulary":
        return RowwiseParallel(input_layouts=Replicate())
    return ColwiseParallel(output_layouts=Replicate())


def _check_divides(name: str, module: nn.Module, split: Split, parts: int) -> None:
    weight = module.get_parameter("weight")
    extent = weight.shape[1 if split == "row" else 0]
    if extent % parts:
        raise LayoutError(f"tensor={parts} does not divide the {extent} of {name} ({split})")


def _tie(model: nn.Module, plan: Plan) -> None:
    """Make tied parameters one again: splitting and `to_empty` gave each module its own."""
    for alias, original in plan.tied.items():
        module_name, _, name = alias.rpartition(".")
        try:
            shared = model.get_parameter(original)
            module = model.get_submodule(module_name)
        except AttributeError:  # the two lie in different stages
            continue
        if name in dict(module.named_parameters(recurse=False)):
            module.register_parameter(name, shared)
