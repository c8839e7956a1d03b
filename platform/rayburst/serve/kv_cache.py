"""A GPT that remembers: keys and values of tokens already read are kept, not computed again.

    memory = Memory.of(model, rows=4, length=64)
    logits = memory.read(idx, positions)  # the prompts, then one new token a row at a time

Rows may stand at different positions. It walks the parts of rayburst.train.gpt.GPT by name;
tests hold it to that model's own answers. Positions are absolute, so a text longer than the
model's block cannot be continued from memory: its tokens would all have to move.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from rayburst.train.gpt import GPT

__all__ = ["Memory"]


@dataclass(slots=True)
class Memory:
    """Keys and values of all layers: `state` is [layers, 2, rows, heads, length, head size]."""

    model: GPT
    state: Tensor

    @classmethod
    def of(cls, model: GPT, *, rows: int, length: int) -> Memory:
        """Empty memory for `rows` texts of at most `length` tokens."""
        config = model.config
        shape = (config.n_layer, 2, rows, config.n_head, length, config.n_embd // config.n_head)
        some = next(model.parameters())
        return cls(model, torch.zeros(shape, dtype=some.dtype, device=some.device))

    def keep(self, rows: Sequence[int]) -> None:
        """Forgets all rows but these, which become rows 0, 1, ..."""
        self.state = self.state[:, :, list(rows)]

    def read(self, idx: Tensor, positions: Tensor) -> Tensor:
        """Logits [B, T, V] for tokens `idx` [B, T] at `positions` [B, T] of their rows.

        Each token sees what its row holds up to its own position. What stands further on is
        never seen, so rows may be padded on the right; later tokens overwrite the padding.
        """
        idx, positions = idx.to(self.state.device), positions.to(self.state.device)
        reach = int(positions.max()) + 1
        seen = torch.arange(reach, device=idx.device) <= positions[:, :, None]
        x = self.model.token_embedding(idx) + self.model.position_embedding(positions)
        for layer, block in enumerate(self.model.blocks):
            x = x + self._attend(layer, block, x, positions, seen[:, None])
            x = x + block.mlp(block.norm_mlp(x))  # type: ignore[operator] # parts by name
        logits: Tensor = self.model.head(self.model.norm(x))
        return logits

    def _attend(
        self, layer: int, block: torch.nn.Module, x: Tensor, positions: Tensor, seen: Tensor
    ) -> Tensor:
        attention = block.attention
        rows, new, width = x.shape
        heads = self.model.config.n_head
        mixed: Tensor = attention.heads(block.norm_attention(x))  # type: ignore[operator, union-attr]
        q, k, v = mixed.view(rows, new, heads, 3, width // heads).unbind(3)
        row = torch.arange(rows, device=x.device)[:, None]
        keys, values = self.state[layer]
        keys[row, :, positions] = k
        values[row, :, positions] = v
        reach = seen.shape[-1]
        y = F.scaled_dot_product_attention(
            q.transpose(1, 2), keys[:, :, :reach], values[:, :, :reach], attn_mask=seen
        )
        out: Tensor = attention.proj(y.transpose(1, 2).reshape(rows, new, width))  # type: ignore[operator, union-attr]
        return out
