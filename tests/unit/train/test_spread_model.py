"""A model that is cut anew for each group: here without any group, so that it stays whole."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rayburst.errors import TrainError
from rayburst.train.spread import Spread


class Tied(nn.Module):
    """Two layers that share their weights, and a buffer that no checkpoint holds."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 3)
        self.norm = nn.LayerNorm(3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.table.weight
        self.register_buffer("scale", torch.full((5,), 2.0), persistent=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.norm(self.table(tokens))) * self.scale
        return out


def spread() -> tuple[Tied, torch.optim.Optimizer, Spread]:
    model = Tied()
    optimizer = torch.optim.SGD(
        [{"params": model.table.parameters(), "lr": 0.5}, {"params": model.norm.parameters()}],
        lr=0.1,
        momentum=0.9,
    )
    return model, optimizer, Spread(model, optimizer, lambda model: None)


def test_the_first_cut_has_the_weights_and_later_ones_wait_for_them() -> None:
    model, optimizer, parts = spread()
    assert parts.cut() is model
    assert parts.has_weights
    model(torch.tensor([1, 2])).sum().backward()
    optimizer.step()

    fresh = parts.cut()
    assert not parts.has_weights
    assert isinstance(fresh, Tied)
    assert fresh is not model
    assert fresh.head.weight is fresh.table.weight
    assert fresh.scale.tolist() == [2.0] * 5, "what no checkpoint holds is kept"
    parts.loaded()
    assert parts.has_weights


def test_the_optimizer_keeps_its_settings_and_learns_the_new_weights() -> None:
    model, optimizer, parts = spread()
    parts.cut()
    model(torch.tensor([1, 2])).sum().backward()
    optimizer.step()
    assert optimizer.state
    fresh = parts.cut()
    assert not optimizer.state
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.1]
    known = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert known == {id(p) for p in fresh.parameters()}


def test_a_stand_in_has_outputs_of_the_right_shape() -> None:
    _, _, parts = spread()
    parts.cut()
    out = parts.stand_in()(torch.tensor([1, 2, 3]))
    assert out.shape == (3, 5)
    assert not out.any()


def test_an_optimizer_of_something_else_is_refused() -> None:
    model = Tied()
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    with pytest.raises(TrainError, match=r"2 parameters that are not the model's.*shard="):
        Spread(model, optimizer, lambda model: None)
