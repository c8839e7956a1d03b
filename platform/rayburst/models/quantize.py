"""Cheaper forms of a GPT, and how each is stored: fp32, bf16, int8 by torchao.

    cheaper = make(model, "int8")
    tensors, metadata = packed(cheaper)            # plain tensors, for a safetensors file
    same = unpacked(model.config.to_dict(), tensors, metadata)

- `bf16`: every weight and every activation in bfloat16.
- `int8`: the weights of all Linear layers in int8, a scale for each row; computed in float32.
- `int8-dynamic`: the same weights, and each token's activations rounded to int8 as it passes. A
  row's answer does not depend on which rows it is computed with.

Embeddings and norms keep their type, so a small model shrinks by less. torchao (`pip install
"rayburst[int8]"`) is loaded when an int8 form is made or read.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rayburst.errors import VariantError
from rayburst.train.gpt import GPT, GPTConfig

__all__ = ["SCHEMES", "check_scheme", "make", "packed", "unpacked"]

SCHEMES = ("fp32", "bf16", "int8", "int8-dynamic")
_TIED = "head.weight"
_SCHEME = "rayburst_scheme"


def check_scheme(name: str) -> str:
    """The name of a scheme. VariantError: there is none of this name, or torchao is missing."""
    if name not in SCHEMES:
        raise VariantError(f"variant {name!r} is not known; there are: {', '.join(SCHEMES)}")
    if name.startswith("int8"):
        _torchao()
    return name


@torch.no_grad()
def make(model: GPT, scheme: str) -> GPT:
    """A copy of an fp32 `model` in another form, in evaluation mode; the model stays as it is."""
    check_scheme(scheme)
    made = copy.deepcopy(model).eval().requires_grad_(False)
    if scheme == "bf16":
        made = made.to(torch.bfloat16)
    elif scheme.startswith("int8"):
        quantization = _torchao()
        config = (
            quantization.Int8WeightOnlyConfig(version=2)
            if scheme == "int8"
            else quantization.Int8DynamicActivationInt8WeightConfig(version=2)
        )
        quantization.quantize_(made, config)
    made.scheme = scheme  # type: ignore[assignment]  # a plain attribute of a module
    return made


def packed(model: GPT) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The weights as plain tensors, and the words that a reader needs. A tied weight goes once."""
    state = dict(model.state_dict())
    metadata = {"format": "pt", _SCHEME: _scheme_of(model)}
    if model.head.weight is model.token_embedding.weight:
        del state[_TIED]
    if not _scheme_of(model).startswith("int8"):
        return state, metadata
    with _quiet():
        from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict

        tensors, words = flatten_tensor_state_dict(state)
    return tensors, {**words, **metadata}


def unpacked(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> GPT:
    """The model that `packed` took apart, on the CPU and in evaluation mode."""
    scheme = check_scheme(metadata.get(_SCHEME, "fp32"))
    state: dict[str, Any] = dict(tensors)
    if scheme.startswith("int8"):
        with _quiet():
            from torchao.prototype.safetensors.safetensors_support import (
                unflatten_tensor_state_dict,
            )

            words = {k: v for k, v in metadata.items() if k not in ("format", _SCHEME)}
            state, _ = unflatten_tensor_state_dict(state, words)
    with torch.device("meta"):
        model = GPT(GPTConfig(**config))
    model.requires_grad_(False)
    is_tied = _TIED not in state
    if is_tied:
        state[_TIED] = state["token_embedding.weight"]
    model.load_state_dict(state, assign=True)
    if is_tied:
        model.head.weight = model.token_embedding.weight
    model.scheme = scheme  # type: ignore[assignment]
    return model.eval()


def _scheme_of(model: nn.Module) -> str:
    return str(getattr(model, "scheme", "fp32"))


def _torchao() -> Any:
    try:
        with _quiet():
            from torchao import quantization
    except ImportError:
        raise VariantError(
            'int8 needs torchao, which is not installed here: pip install "rayburst[int8]"'
        ) from None
    return quantization


@contextmanager
def _quiet() -> Iterator[None]:
    """torchao logs which kernels for GPUs it cannot load, and torch how torchao registers enums."""
    loggers = [logging.getLogger("torchao"), logging.getLogger("torch.utils._pytree")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
