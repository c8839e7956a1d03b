"""A token depends on its own row and its own random numbers."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from rayburst.errors import RequestFailedError
from rayburst.serve.generate.request import Request
from rayburst.serve.generate.sampling import draw


def request(**words: Any) -> Request:
    return Request(prompt=b"a", **words)


def drawn(chances: list[float], number: int, **words: Any) -> Counter[int]:
    """How often each token comes, each time from another seed."""
    logits = torch.tensor([chances]).log().expand(number, -1)
    generators = [torch.Generator().manual_seed(seed) for seed in range(number)]
    return Counter(draw(logits, [request(**words)] * number, generators))


def test_tokens_come_as_often_as_their_probability_says() -> None:
    found = drawn([0.5, 0.3, 0.15, 0.05], 4000)
    assert [found[n] / 4000 for n in range(4)] == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.03)


def test_temperature_sharpens_and_zero_takes_the_likeliest() -> None:
    found = drawn([0.6, 0.4], 2000, temperature=0.5)
    assert found[0] / 2000 == pytest.approx(0.36 / 0.52, abs=0.04)
    assert drawn([0.4, 0.6], 5, temperature=0.0) == {1: 5}


@pytest.mark.parametrize(
    ("words", "allowed"),
    [
        ({"top_k": 2}, {0, 1}),
        ({"top_k": 99}, {0, 1, 2, 3}),
        ({"top_p": 0.5}, {0}),
        ({"top_p": 0.51}, {0, 1}),
        ({"top_p": 0.9}, {0, 1, 2}),
        ({"top_p": 0.001}, {0}),
        ({"top_k": 3, "top_p": 0.8}, {0, 1}),  # of what is left: 0.5 / 0.95 + 0.3 / 0.95
        ({"top_k": 1, "temperature": 5.0}, {0}),
    ],
)
def test_only_the_likeliest_are_drawn(words: dict[str, Any], allowed: set[int]) -> None:
    assert set(drawn([0.5, 0.3, 0.15, 0.05], 400, **words)) == allowed


def test_a_row_is_drawn_as_it_would_be_alone() -> None:
    torch.manual_seed(1)
    logits = torch.randn(6, 40)
    asked = [
        request(), request(temperature=0.0), request(top_k=3), request(top_p=0.4),
        request(temperature=2.0, top_k=30, top_p=0.9), request(temperature=0.3),
    ]  # fmt: skip
    together = [torch.Generator().manual_seed(seed) for seed in range(6)]
    apart = [torch.Generator().manual_seed(seed) for seed in range(6)]
    for _ in range(20):
        alone = [draw(logits[n : n + 1], [asked[n]], [apart[n]])[0] for n in range(6)]
        assert draw(logits, asked, together) == alone


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"prompt": b""}, "prompt is empty"),
        ({"max_tokens": 0}, "max_tokens=0: give 1 or more"),
        ({"temperature": -0.1}, "temperature=-0.1"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"top_k": 0}, "top_k=0: give 1 or more, or leave it out"),
        ({"top_p": 0.0}, "top_p=0.0"),
        ({"top_p": 1.1}, "top_p=1.1"),
        ({"seed": -1}, "seed=-1"),
        ({"stop": (b"a", b"")}, "stop has an empty text"),
    ],
)
def test_what_cannot_be_asked_is_refused(words: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Request(**{"prompt": b"a", **words})


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_numbers_that_are_none_are_no_text(temperature: float) -> None:
    logits = torch.tensor([[0.1, 0.2], [0.1, float("nan")]])
    generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
    with pytest.raises(RequestFailedError, match="not finite"):
        draw(logits, [request(temperature=temperature)] * 2, generators)
