"""Cheaper forms of a GPT, and how each is stored: fp32, bf16, int8 by torchao or ONNX Runtime.

    cheaper = make(model, "int8")
    tensors, metadata = packed(cheaper)            # plain tensors, for a safetensors file
    same = unpacked(model.config.to_dict(), tensors, metadata)

- `bf16`: every weight and every activation in bfloat16.
- `int8`: the weights of all Linear layers in int8, a scale for each row; computed in float32.
- `int8-dynamic`: the same weights, and each token's activations rounded to int8 as it passes. A
  row's answer does not depend on which rows it is computed with.
- `int8-onnx`: as `int8-dynamic`, in integer products of ONNX Runtime (onnx_linear.py). The output
  layer stays what it is, the embedding's own weights.

Embeddings and norms keep their type, so a small model shrinks by less. torchao (`pip install
"rayburst[int8]"`) or ONNX Runtime (`"rayburst[onnx]"`) is loaded when such a form is made or read.
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
from rayburst.models import onnx_linear
from rayburst.train.gpt import GPT, GPTConfig

__all__ = ["SCHEMES", "check_scheme", "make", "packed", "unpacked"]

ONNX = "int8-onnx"
SCHEMES = ("fp32", "bf16", "int8", "int8-dynamic", ONNX)
_HEAD = "head"
_TIED = f"{_HEAD}.weight"
_SCHEME = "rayburst_scheme"


def check_scheme(name: str) -> str:
    """The name of a scheme. VariantError: there is none of this name, or its package is missing."""
    if name not in SCHEMES:
        raise VariantError(f"variant {name!r} is not known; there are: {', '.join(SCHEMES)}")
    if name == ONNX:
        onnx_linear.available()
    elif _is_torchao(name):
        _torchao()
    return name


@torch.no_grad()
def make(model: GPT, scheme: str) -> GPT:
    """A copy of an fp32 `model` in another form, in evaluation mode; the model stays as it is."""
    check_scheme(scheme)
    made = copy.deepcopy(model).eval().requires_grad_(False)
    if scheme == "bf16":
        made = made.to(torch.bfloat16)
    elif scheme == ONNX:
        onnx_linear.replace(made, keep=_HEAD)
    elif _is_torchao(scheme):
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
    if not _is_torchao(_scheme_of(model)):
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
    if _is_torchao(scheme):
        with _quiet():
            from torchao.prototype.safetensors.safetensors_support import (
                unflatten_tensor_state_dict,
            )

            words = {k: v for k, v in metadata.items() if k not in ("format", _SCHEME)}
            state, _ = unflatten_tensor_state_dict(state, words)
    with torch.device("meta"):
        model = GPT(GPTConfig(**config))
        if scheme == ONNX:
            onnx_linear.emptied(model, keep=_HEAD)
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


def _is_torchao(scheme: str) -> bool:
    return scheme in ("int8", "int8-dynamic")


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
