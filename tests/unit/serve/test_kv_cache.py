"""Reading from memory gives what the model gives when it reads everything again."""

from __future__ import annotations

import pytest
import torch

from rayburst.serve.kv_cache import Memory
from rayburst.train.gpt import GPT, GPTConfig


@pytest.fixture(scope="module")
def model() -> GPT:
    torch.set_num_threads(1)
    torch.manual_seed(5)
    made = GPT(GPTConfig(block_size=12, n_layer=3, n_head=2, n_embd=16)).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(4)
    return made.requires_grad_(False)


def test_token_by_token_equals_all_at_once(model: GPT) -> None:
    idx = torch.randint(256, (3, 12))
    whole, _ = model(idx)
    memory = Memory.of(model, rows=3, length=12)
    for position in range(12):
        at = torch.full((3, 1), position)
        logits = memory.read(idx[:, position : position + 1], at)
        torch.testing.assert_close(logits[:, 0], whole[:, position], rtol=1e-4, atol=1e-4)


def test_rows_of_mixed_lengths_go_on_from_their_own_position(model: GPT) -> None:
    texts = [[7], [1, 2, 3, 4, 5, 6], [9, 8, 7]]
    padded = torch.tensor([text + [0] * (6 - len(text)) for text in texts])
    memory = Memory.of(model, rows=3, length=12)
    memory.read(padded, torch.arange(6).expand(3, 6))

    memory.keep([0, 2])
    logits = memory.read(torch.tensor([[11], [12]]), torch.tensor([[1], [3]]))
    for row, text in enumerate([[7, 11], [9, 8, 7, 12]]):
        whole, _ = model(torch.tensor([text]))
        torch.testing.assert_close(logits[row, 0], whole[0, -1], rtol=1e-4, atol=1e-4)
