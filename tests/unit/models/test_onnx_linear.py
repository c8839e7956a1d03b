"""An int8 layer of ONNX Runtime: near the exact one, row by row, on processors of both kinds."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("onnxruntime", reason="the extra `onnx`; `dev` has it")
from rayburst.models import onnx_linear
from rayburst.models.onnx_linear import OnnxLinear, replace


@pytest.fixture
def layer() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(48, 40)


def quantized(layer: nn.Linear) -> OnnxLinear:
    model = nn.ModuleDict({"layer": copy.deepcopy(layer), "kept": nn.Linear(2, 2)})
    replace(model, keep="kept")
    assert isinstance(model["kept"], nn.Linear)
    return model["layer"]


@torch.no_grad()
def test_it_is_near_the_exact_layer_whatever_the_scale_of_a_row(layer: nn.Linear) -> None:
    x = torch.randn(3, 5, 48) * torch.tensor([1e-6, 1.0, 1e4])[:, None, None]
    exact, got = layer(x), quantized(layer)(x)
    assert got.shape == exact.shape and got.dtype == torch.float32
    near = (got - exact).abs().amax(-1) <= 0.02 * x.abs().amax(-1) + 1e-6
    assert near.all()


@torch.no_grad()
def test_a_row_gives_the_same_bits_in_any_company(layer: nn.Linear) -> None:
    made = quantized(layer)
    x = torch.randn(64, 48)
    x[7] *= 1000  # one scale for all rows would leave the others nothing
    alone = torch.cat([made(row[None]) for row in x])
    assert torch.equal(alone, made(x))


@torch.no_grad()
def test_weights_are_unsigned_where_sums_of_signed_ones_saturate(
    layer: nn.Linear, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn(9, 48)
    signed = quantized(layer)(x)
    monkeypatch.setattr(onnx_linear, "_saturates", lambda: True)
    assert torch.equal(quantized(layer)(x), signed)


@torch.no_grad()
def test_no_number_stays_no_number_and_no_row_is_no_error(layer: nn.Linear) -> None:
    made = quantized(layer)
    x = torch.zeros(4, 48)
    x[1, 3], x[2, 3] = torch.nan, torch.inf
    got = made(x)
    assert torch.equal(got[[0, 3]], layer.bias.expand(2, -1))
    assert not torch.isfinite(got[[1, 2]]).any()
    assert made(x[:0]).shape == (0, 40)


@torch.no_grad()
def test_it_travels_and_follows_the_threads_of_torch(layer: nn.Linear) -> None:
    made = quantized(layer)
    x = torch.randn(3, 48)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = made(x)
        torch.set_num_threads(2)
        assert torch.equal(made(x), one)
    finally:
        torch.set_num_threads(before)
    assert sorted(made._sessions) == [1, 2]
    assert torch.equal(pickle.loads(pickle.dumps(made))(x), one)
    assert torch.equal(copy.deepcopy(made)(x.T.contiguous().T), one)
    assert np.isfinite(one.numpy()).all()


def test_off_the_cpu_it_is_torch_that_computes(layer: nn.Linear) -> None:
    """No GPU here: a device without memory shows the way taken and the shape."""
    made = quantized(layer).to("meta")
    got = made(torch.empty(3, 5, 48, device="meta"))
    assert (got.shape, got.dtype, made._sessions) == ((3, 5, 40), torch.float32, {})
