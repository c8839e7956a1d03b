"""A Linear layer in int8 that ONNX Runtime computes: integer products, a scale for each row.

    replace(model, keep="head")     # each nn.Linear of a module but that one

Weights are rounded to int8 with a scale for each output, activations to 8 bits with a scale for
each row as it passes, so a row's answer does not depend on which rows it is computed with (ONNX's
own DynamicQuantizeLinear takes one scale for all of them). Around the layers torch goes on as it
was: the memory of a generation, attention and norms know nothing of it.

The graph of a layer is made where it runs, for as many threads as torch has there. Off the CPU the
weights are turned into floats to compute, which is right and gains memory alone.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rayburst.errors import VariantError

__all__ = ["OnnxLinear", "available", "emptied", "replace"]

_OPSET, _IR = 20, 9
_ZERO = 128  # of the activations, which are unsigned: the integer kernels want them so
_LEVELS = 127
_LEAST = 1e-12  # a row of zeros has a scale too


class OnnxLinear(nn.Module):
    """y = x W' + b for float32 x [..., inputs], without gradients.

    `weight` int8 [outputs, inputs], `scale` float32 [outputs], `bias` float32 [outputs] or None.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias)
        self._sessions: dict[int, Any] = {}

    def forward(self, x: Tensor) -> Tensor:
        """Float32 [..., outputs]."""
        if x.device.type != "cpu":
            return F.linear(x, self.weight * self.scale[:, None], self.bias)
        rows = x.detach().reshape(-1, x.shape[-1])
        threads = torch.get_num_threads()
        session = self._sessions.get(threads)
        if session is None:
            session = self._sessions[threads] = self._session(threads)
        (y,) = session.run(None, {"x": rows.numpy()})
        return torch.from_numpy(y).view(*x.shape[:-1], self.scale.shape[0])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_sessions": {}}

    def _session(self, threads: int) -> Any:
        weight, scale = self.weight.numpy(), self.scale.numpy()
        bias = np.zeros_like(scale) if self.bias is None else self.bias.numpy()
        return _session(_graph(weight, scale, bias, unsigned=_saturates()), threads)


def available() -> None:
    """VariantError when what computes such layers is not installed here."""
    _onnx()


@torch.no_grad()
def replace(model: nn.Module, *, keep: str) -> None:
    """Each nn.Linear of `model` in int8, in place, but the one named `keep`."""
    for name, layer in _linears(model, keep):
        weight = layer.weight.detach().float()
        scale = weight.abs().amax(dim=1).clamp(min=_LEAST) / _LEVELS
        rounded = (weight / scale[:, None]).round().to(torch.int8)
        bias = None if layer.bias is None else layer.bias.detach().float()
        model.set_submodule(name, OnnxLinear(rounded, scale, bias))


def emptied(model: nn.Module, *, keep: str) -> None:
    """As `replace` leaves a model, without weights: for a state that is assigned to it."""
    for name, layer in _linears(model, keep):
        like = torch.empty_like(layer.weight, dtype=torch.int8)
        bias = None if layer.bias is None else torch.empty_like(layer.bias)
        model.set_submodule(name, OnnxLinear(like, like[:, 0].float(), bias))


def _linears(model: nn.Module, keep: str) -> list[tuple[str, nn.Linear]]:
    found = ((n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear))
    return [(name, layer) for name, layer in found if name != keep]


def _graph(
    weight: np.ndarray, scale: np.ndarray, bias: np.ndarray, *, unsigned: bool = False
) -> bytes:
    """The layer as an ONNX model of float32 x [rows, inputs]. Some processors add products of
    8 bits in 16, which hold them only where the weights are `unsigned` too."""
    onnx, _ = _onnx()
    rounded = np.ascontiguousarray(weight.T)
    if unsigned:
        rounded = (rounded.astype(np.int16) + _ZERO).astype(np.uint8)
    constants = {
        "weight": rounded,
        "weight_zero": np.array(_ZERO if unsigned else 0, rounded.dtype),
        "scale": scale,
        "bias": bias,
        "zero": np.array(_ZERO, np.uint8),
        "one_zero": np.array([_ZERO], np.uint8),
        "level": np.array(1 / _LEVELS, np.float32),
        "least": np.array(_LEAST, np.float32),
        "nothing": np.array(0, np.float32),
        "last": np.array([-1], np.int64),
    }
    steps = [
        ("Abs", "x", "size"),
        ("ReduceMax", "size last", "largest"),
        ("Mul", "largest level", "step_or_none"),
        ("Max", "step_or_none least", "largest_step"),
        ("ReduceSum", "size last", "total"),  # ReduceMax passes over what is no number
        ("Mul", "total nothing", "nothing_or_nan"),
        ("Add", "largest_step nothing_or_nan", "step"),
        ("Squeeze", "step last", "steps"),
        ("Shape", "steps", "rows"),
        ("Expand", "one_zero rows", "zeros"),
        ("QuantizeLinear", "x steps zeros", "x8"),
        ("MatMulInteger", "x8 weight zero weight_zero", "whole"),
        ("Cast", "whole", "product"),
        ("Mul", "product step", "scaled"),
        ("Mul", "scaled scale", "unbiased"),
        ("Add", "unbiased bias", "y"),
    ]
    words = {"QuantizeLinear": {"axis": 0}, "Cast": {"to": 1}}
    h, floats = onnx.helper, onnx.TensorProto.FLOAT
    graph = h.make_graph(
        [h.make_node(op, given.split(), [out], **words.get(op, {})) for op, given, out in steps],
        "int8-linear",
        [h.make_tensor_value_info("x", floats, ["rows", weight.shape[1]])],
        [h.make_tensor_value_info("y", floats, ["rows", weight.shape[0]])],
        [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    made = h.make_model(graph, opset_imports=[h.make_opsetid("", _OPSET)], ir_version=_IR)
    return bytes(made.SerializeToString())


def _session(graph: bytes, threads: int) -> Any:
    _, runtime = _onnx()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # a layer's threads would burn the cores that the next layer's need
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return runtime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


@functools.cache
def _saturates() -> bool:
    """Whether unsigned times signed bytes lose their top bit on this processor (AVX2 without VNNI:
    https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html)."""
    width = 64
    ones = np.ones(width, np.float32)
    graph = _graph(np.full((width, width), _LEVELS, np.int8), ones, 0 * ones)
    (y,) = _session(graph, 1).run(None, {"x": np.ones((1, width), np.float32)})
    return not np.allclose(y, width * _LEVELS)


def _onnx() -> tuple[Any, Any]:
    try:
        import onnx
        import onnxruntime
    except ImportError:
        raise VariantError(
            "int8-onnx needs ONNX Runtime, which is not installed here: "
            'pip install "rayburst[onnx]"'
        ) from None
    return onnx, onnxruntime
