"""The memory shape of a model, and the layout that it gets: `rayburst.train.plan_layout`.

    plan_layout(PRESETS["gpt2"], nodes, "bf16", global_batch=64)
    plan_layout(my_model, nodes, "bf16", global_batch=64, plan=my_plan, sample=one_input)

A GPT's shape follows from its config. Of any other model, the ends and one block are run once on
one sample, where they are, and what autograd keeps is counted. On the meta device that takes no
memory, and counts attention matrices that fused kernels do not keep.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from rayburst.errors import LayoutError
from rayburst.train.gpt import GPT, GPTConfig
from rayburst.train.parallel.fit import FitOptions, LayoutPlan, Node, choose
from rayburst.train.parallel.memory import ModelShape, Part
from rayburst.train.parallel.plan import Plan
from rayburst.train.parallel.saved import SavedBytes

_FLOAT32 = 4

__all__ = ["gpt_shape", "module_shape", "plan_layout"]


def plan_layout(
    model: GPTConfig | nn.Module | ModelShape,
    nodes: Sequence[Node],
    precision: str = "bf16",
    *,
    global_batch: int,
    plan: Plan | None = None,
    sample: Tensor | None = None,
    **options: Any,
) -> LayoutPlan:
    """The simplest layout in which `model` trains on `nodes`, and its memory a device.

    `options` are the other fields of `FitOptions`. A module that is no GPT needs its `plan` and one
    `sample` of its inputs, with a batch dimension of 1. LayoutError when nothing fits: it says what
    would.
    """
    chosen = FitOptions(precision=precision, global_batch=global_batch, **options)
    return choose(_shape(model, plan, sample), nodes, chosen)


def _shape(
    model: GPTConfig | nn.Module | ModelShape, plan: Plan | None, sample: Tensor | None
) -> ModelShape:
    if isinstance(model, ModelShape):
        return model
    if isinstance(model, GPTConfig):
        return gpt_shape(model)
    if isinstance(model, GPT):
        return gpt_shape(model.config)
    if plan is None or sample is None:
        raise LayoutError(
            f"{type(model).__name__} needs a plan and a sample: plan_layout(model, nodes, "
            "plan=..., sample=one_input[None], global_batch=...)"
        )
    return module_shape(model, plan, sample)


def gpt_shape(config: GPTConfig) -> ModelShape:
    """Of the built-in GPT at its full block size.

    A block keeps, in units of tokens x width: the inputs of two norms (the residual stream), the
    inputs of the two split layers after them, queries, keys and values (3), the attention's output
    (1), and the MLP's inner values before and after GELU (8). 16 units: Korthikanti's 34 bytes in
    16 bits, less 2 of dropout masks that are not there.
    """
    width, tokens = config.n_embd, config.block_size
    stream = tokens * width
    return ModelShape(
        embed=Part(split=config.vocab_size * width, whole=tokens * width, kept_full=4 * tokens),
        block=Part(
            split=12 * width * width + 7 * width,
            whole=6 * width,
            kept_split=12 * stream,
            kept_whole=2 * stream,
            kept_residual=2 * stream,
            kept_full=tokens * (4 + config.n_head),
        ),
        unembed=Part(
            split=config.vocab_size * width,
            whole=2 * width,
            kept_whole=stream,
            kept_residual=stream,
            kept_full=tokens * (config.vocab_size + 4),
        ),
        blocks=config.n_layer,
        carried=stream,
        output=tokens * config.vocab_size,
        units=config.n_head,
        tied=config.vocab_size * width,
    )


def module_shape(model: nn.Module, plan: Plan, sample: Tensor) -> ModelShape:
    """Of any module, from one run of its ends and one block; without blocks it is one piece."""
    blocks = [] if plan.blocks is None else list(model.get_submodule(plan.blocks).children())
    with SavedBytes(model) as first:
        x = model(sample) if plan.embed is None else getattr(model, plan.embed)(sample)
    if plan.embed is None or plan.unembed is None or not blocks:
        whole = sum(p.numel() for p in model.parameters())
        only = Part(whole=whole, kept_whole=first.bytes / _FLOAT32)
        return ModelShape(embed=Part(), block=only, unembed=Part(), blocks=1, carried=0)
    with SavedBytes(model) as middle:
        y = blocks[0](x)
    with SavedBytes(model) as last:
        output = getattr(model, plan.unembed)(y)
    ends = {end: [model.get_submodule(n) for n in names] for end, names in plan.ends.items()}
    return ModelShape(
        embed=_part(model, plan, ends.get("embed", []), first.bytes),
        block=_part(model, plan, [blocks[0]], middle.bytes),
        unembed=_part(model, plan, ends.get("unembed", []), last.bytes),
        blocks=len(blocks),
        carried=x.numel(),
        output=output.numel(),
        units=plan.tensor_units(model) if plan.tensor_units is not None else 1,
        tied=sum(model.get_parameter(name).numel() for name in plan.tied.values()),
    )


def _part(model: nn.Module, plan: Plan, modules: list[nn.Module], saved_bytes: int) -> Part:
    names = {module: name for name, module in model.named_modules()}
    split = whole = 0
    for inner in (inner for module in modules for inner in module.modules()):
        how = plan.split_of(names[inner])
        for name, parameter in inner.named_parameters(recurse=False):
            if how is None or (how == "row" and name == "bias"):
                whole += parameter.numel()
            else:
                split += parameter.numel()
    # what is kept is counted whole: how much of it a split layer divides is not known
    return Part(split=split, whole=whole, kept_whole=saved_bytes / _FLOAT32)
