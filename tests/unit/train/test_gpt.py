"""The model: shapes, causality, gradients, generation."""

import math

import pytest
import torch
from torch import nn

from rayburst.train.gpt import GPT, PRESETS, GPTConfig

torch.set_num_threads(1)  # spinning threads cost more than they bring on busy cores
SMALL = GPTConfig(block_size=16, n_layer=2, n_head=2, n_embd=32)


@pytest.fixture
def model() -> GPT:
    torch.manual_seed(0)
    return GPT(SMALL).eval()


def tokens(b: int, t: int) -> torch.Tensor:
    return torch.randint(0, 256, (b, t), generator=torch.Generator().manual_seed(1))


def test_shapes_and_loss_of_an_untrained_model(model: GPT) -> None:
    idx = tokens(3, 16)
    logits, loss = model(idx, idx)
    assert logits.shape == (3, 16, 256)
    assert loss is not None
    assert loss.item() == pytest.approx(math.log(256), abs=0.5)
    assert model(idx)[1] is None


def test_a_token_sees_only_its_past(model: GPT) -> None:
    idx = tokens(1, 16)
    changed = idx.clone()
    changed[0, 10] = (changed[0, 10] + 1) % 256
    before, after = model(idx)[0], model(changed)[0]
    torch.testing.assert_close(before[:, :10], after[:, :10])
    assert not torch.allclose(before[:, 10:], after[:, 10:])


def test_it_learns_a_pattern() -> None:
    torch.manual_seed(0)
    model = GPT(SMALL)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    text = torch.arange(17).remainder(4).expand(4, 17)
    losses = []
    for _ in range(30):
        _, loss = model(text[:, :-1], text[:, 1:])
        assert loss is not None
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]
    out = model.eval().generate(text[:1, :4], 8, temperature=0)
    assert out[0].tolist() == [0, 1, 2, 3] * 3


def test_generation_is_repeatable_and_may_outgrow_the_block(model: GPT) -> None:
    def run() -> torch.Tensor:
        generator = torch.Generator().manual_seed(7)
        return model.generate(tokens(2, 4), 20, top_k=5, generator=generator)

    assert run().shape == (2, 24)
    assert torch.equal(run(), run())
    assert torch.equal(run()[:, :4], tokens(2, 4))


def test_top_k_of_one_is_the_likeliest_token(model: GPT) -> None:
    idx = tokens(2, 4)
    assert torch.equal(model.generate(idx, 5, top_k=1), model.generate(idx, 5, temperature=0))


def test_embedding_and_output_share_their_weights(model: GPT) -> None:
    assert model.head.weight is model.token_embedding.weight


def test_config_round_trip_and_bad_shapes() -> None:
    assert GPTConfig(**SMALL.to_dict()) == SMALL
    with pytest.raises(ValueError, match="multiple"):
        GPTConfig(n_head=3, n_embd=32)
    with pytest.raises(ValueError, match="n_layer"):
        GPTConfig(n_layer=0)
    with pytest.raises(ValueError, match="dropout"):
        GPTConfig(dropout=1.0)


def test_bad_calls_say_what_is_allowed(model: GPT) -> None:
    with pytest.raises(ValueError, match="reads 16"):
        model(tokens(1, 17))
    with pytest.raises(ValueError, match="temperature"):
        model.generate(tokens(1, 2), 1, temperature=-1)
    with pytest.raises(ValueError, match="top_k"):
        model.generate(tokens(1, 2), 1, top_k=0)


def test_presets_grow() -> None:
    with torch.device("meta"):
        sizes = [GPT(PRESETS[name]).parameter_count for name in ("micro", "tiny", "small", "gpt2")]
    assert sizes == sorted(sizes)
    assert 80e6 < sizes[-1] < 130e6


def test_the_rows_of_the_first_heads_are_the_attention_of_those_heads() -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_layer=1, n_head=4, n_embd=32))
    attention, x = model.blocks[0].attention, torch.randn(2, 8, 32)
    whole = attention(x)
    parts = [torch.zeros_like(whole)]
    for rows in (slice(0, 48), slice(48, 96)):  # two of the four heads each: 2 * 3 * 8 rows
        half = GPT(GPTConfig(n_layer=1, n_head=4, n_embd=32)).blocks[0].attention
        half.heads.weight = nn.Parameter(attention.heads.weight[rows])
        half.heads.bias = nn.Parameter(attention.heads.bias[rows])
        columns = slice(rows.start // 3, rows.stop // 3)
        half.proj.weight = nn.Parameter(attention.proj.weight[:, columns])
        half.proj.bias = nn.Parameter(attention.proj.bias / 2)
        parts.append(half(x))
    torch.testing.assert_close(sum(parts), whole)
