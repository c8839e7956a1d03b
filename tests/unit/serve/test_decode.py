"""Many requests in one pass give what each gives alone."""

from __future__ import annotations

import math

import pytest
import torch

from rayburst.serve.decode import Generation, generate, score
from rayburst.train.gpt import GPT, GPTConfig


@pytest.fixture(scope="module")
def model() -> GPT:
    torch.set_num_threads(1)  # more only wait for each other on models this small
    torch.manual_seed(3)
    made = GPT(GPTConfig(block_size=16, n_layer=2, n_head=2, n_embd=32)).eval()
    with torch.no_grad():  # untrained logits are nearly flat; make them differ
        for parameter in made.parameters():
            parameter.mul_(3)
    return made.requires_grad_(False)


REQUESTS = [
    Generation(prompt=prompt, max_new_tokens=new, temperature=heat, top_k=top, seed=seed)
    for prompt, new, heat, top, seed in [
        (b"a", 1, 1.0, None, 1),
        (b"def f(x):", 40, 0.8, 20, 2),
        ("größer als ein Block, und länger".encode(), 23, 1.3, None, 3),
        (b"0123456789abcdef", 7, 0.0, None, 4),  # exactly one block
        (b"x", 40, 0.0, 5, 5),
        (b"a", 30, 1.0, 1, 6),
    ]
]


def test_generation_in_a_batch_equals_generation_alone(model: GPT) -> None:
    together = generate(model, REQUESTS)
    alone = [generate(model, [request])[0] for request in REQUESTS]
    assert together == alone
    assert [len(text) for text in together] == [r.max_new_tokens for r in REQUESTS]
    assert generate(model, REQUESTS[::-1]) == together[::-1]


def test_generation_equals_the_model_s_own(model: GPT) -> None:
    for request, text in zip(REQUESTS, generate(model, REQUESTS), strict=True):
        prompt = torch.tensor([list(request.prompt)])
        own = model.generate(
            prompt,
            request.max_new_tokens,
            temperature=request.temperature,
            top_k=request.top_k,
            generator=torch.Generator().manual_seed(request.seed),
        )
        assert bytes(own[0, prompt.shape[1] :].tolist()) == text


def test_seeds_differ(model: GPT) -> None:
    texts = generate(
        model,
        [
            Generation(prompt=b"a", max_new_tokens=20, temperature=1.0, top_k=None, seed=seed)
            for seed in range(5)
        ],
    )
    assert len(set(texts)) == 5


TEXTS = [b"ab", b"x" * 17, bytes(range(256)), "Größe".encode(), b"0123456789abcdef", b"y" * 33]


@pytest.mark.parametrize("rows_at_once", [1, 4, 64])
def test_scores_in_a_batch_equal_scores_alone(model: GPT, rows_at_once: int) -> None:
    together = score(model, TEXTS, rows_at_once=rows_at_once)
    alone = [score(model, [text], rows_at_once=1)[0] for text in TEXTS]
    assert [s.scored_bytes for s in together] == [len(text) - 1 for text in TEXTS]
    assert [s.bits_per_byte for s in together] == pytest.approx(
        [s.bits_per_byte for s in alone], rel=1e-5
    )


def test_score_is_the_model_s_own_loss_in_bits(model: GPT) -> None:
    text = b"0123456789abcdef!"  # one block and its last target
    idx = torch.tensor([list(text)])
    _, loss = model(idx[:, :-1], idx[:, 1:])
    (own,) = score(model, [text], rows_at_once=8)
    assert own.bits_per_byte == pytest.approx(float(loss) / math.log(2), rel=1e-5)


def test_an_empty_batch_is_empty(model: GPT) -> None:
    assert generate(model, []) == []
    assert score(model, [], rows_at_once=4) == []


def test_what_cannot_be_computed_is_refused(model: GPT) -> None:
    with pytest.raises(ValueError, match="prompt is empty"):
        Generation(prompt=b"", max_new_tokens=1, temperature=1.0, top_k=None, seed=0)
    with pytest.raises(ValueError, match="a text of 1 bytes has nothing to predict"):
        score(model, [b"a"], rows_at_once=1)
