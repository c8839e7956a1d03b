"""Logits from a paged cache: the GPT reads pieces of many texts in one pass.

    cache = PagedCache(model, blocks=64, size=16)
    logits = cache.read(pieces)      # [R, V]: a row for each piece that emits, in their order

All new tokens of a step go through the linear layers together, whatever text they are of. Attention
is by text: those that read about as many tokens of about as many share a call per layer over their
gathered blocks, padded to the longest. Sliding texts have no blocks and are read whole. It walks
the parts of rayburst.train.gpt.GPT by name; tests hold it to that model's own answers, up to the
rounding of floats.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from rayburst.serve.generate.schedule import Piece
from rayburst.train.gpt import GPT

__all__ = ["PagedCache"]


@dataclass(frozen=True, slots=True)
class _Group:
    """Rows that one attention call computes: places among the new tokens, blocks, what is seen."""

    rows: Tensor  # [R, T] places of the new tokens in the step
    table: Tensor  # [R, W] blocks, padded with any block
    seen: Tensor  # [R, 1, T, W * size] True where a new token sees a cached one


class PagedCache:
    """Keys and values of all layers: `state` is [layers, 2, blocks, size, heads, head size]."""

    def __init__(self, model: GPT, *, blocks: int, size: int) -> None:
        config = model.config
        some = next(model.parameters())
        self.model, self.size = model, size
        shape = (config.n_layer, 2, blocks, size, config.n_head, config.n_embd // config.n_head)
        # zeros, not empty: what a mask hides is still multiplied, and must be finite
        self.state = torch.zeros(shape, dtype=some.dtype, device=some.device)

    @torch.inference_mode()
    def read(self, pieces: Sequence[Piece]) -> Tensor:
        """Logits [R, V] after the last token of each piece that emits."""
        paged = [piece for piece in pieces if piece.blocks]
        sliding = [piece for piece in pieces if not piece.blocks]
        ends: dict[int, Tensor] = {}
        if paged:
            ends |= zip((id(piece) for piece in paged), self._read_paged(paged), strict=True)
        if sliding:
            ends |= zip((id(piece) for piece in sliding), self._read_whole(sliding), strict=True)
        wanted = [ends[id(piece)] for piece in pieces if piece.emits]
        if not wanted:
            return self.state.new_empty(0, self.model.config.vocab_size)
        return self.model.unembed(torch.stack(wanted))

    def _read_whole(self, pieces: Sequence[Piece]) -> Tensor:
        """The last block's output [R, C] at the last token of texts of one length."""
        idx = torch.tensor([piece.tokens for piece in pieces], device=self.state.device)
        x = self.model.embed(idx)
        for block in self.model.blocks:
            x = block(x)
        last: Tensor = x[:, -1]
        return last

    def _read_paged(self, pieces: Sequence[Piece]) -> Tensor:
        device = self.state.device
        tokens = [token for piece in pieces for token in piece.tokens]
        places = [at for piece in pieces for at in _positions(piece)]
        slots = [self._slot(piece, at) for piece in pieces for at in _positions(piece)]
        idx, positions = torch.tensor([tokens, places], device=device)
        slot = torch.tensor(slots, device=device)
        groups = self._groups(pieces)
        x = self.model.token_embedding(idx) + self.model.position_embedding(positions)
        for layer, block in enumerate(self.model.blocks):
            x = x + self._attend(layer, block, x, slot, groups)
            x = x + block.mlp(block.norm_mlp(x))  # type: ignore[operator] # parts by name
        ends = torch.tensor([len(piece.tokens) for piece in pieces], device=device).cumsum(0) - 1
        last: Tensor = x[ends]
        return last

    def _slot(self, piece: Piece, position: int) -> int:
        return piece.blocks[position // self.size] * self.size + position % self.size

    def _groups(self, pieces: Sequence[Piece]) -> list[_Group]:
        """Pieces that read about as many tokens of texts about as long share a call."""
        alike: dict[tuple[int, int], list[tuple[Piece, int]]] = {}
        start = 0
        for piece in pieces:
            number = len(piece.tokens)
            size = (number.bit_length(), self._width(piece).bit_length())
            alike.setdefault(size, []).append((piece, start))
            start += number
        return [self._group(members) for members in alike.values()]

    def _width(self, piece: Piece) -> int:
        return -(-(piece.start + len(piece.tokens)) // self.size)

    def _group(self, members: Sequence[tuple[Piece, int]]) -> _Group:
        device = self.state.device
        width = max(self._width(piece) for piece, _ in members)
        table = [(piece.blocks + [0] * width)[:width] for piece, _ in members]
        told = [(start, piece.start, len(piece.tokens)) for piece, start in members]
        first, position, number = torch.tensor(told).T[:, :, None]
        # A shorter piece asks for its last token again: the same answer to the same place.
        steps = torch.arange(int(number.max())).minimum(number - 1)
        seen = torch.arange(width * self.size) <= (position + steps)[:, :, None]
        return _Group(
            rows=(first + steps).to(device),
            table=torch.tensor(table, device=device),
            seen=seen[:, None].to(device),
        )

    def _attend(
        self, layer: int, block: torch.nn.Module, x: Tensor, slot: Tensor, groups: list[_Group]
    ) -> Tensor:
        attention = block.attention
        width = x.shape[-1]
        heads = self.model.config.n_head
        mixed: Tensor = attention.heads(block.norm_attention(x))  # type: ignore[operator, union-attr]
        q, k, v = mixed.view(len(x), heads, 3, width // heads).unbind(2)
        keys, values = self.state[layer]
        keys.view(-1, heads, width // heads)[slot] = k
        values.view(-1, heads, width // heads)[slot] = v
        out = torch.empty_like(x)
        for group in groups:
            y = F.scaled_dot_product_attention(
                q[group.rows].transpose(1, 2),
                _gathered(keys, group.table),
                _gathered(values, group.table),
                attn_mask=group.seen,
            )
            out[group.rows] = y.transpose(1, 2).flatten(2)
        projected: Tensor = attention.proj(out)  # type: ignore[operator, union-attr]
        return projected


def _positions(piece: Piece) -> range:
    return range(piece.start, piece.start + len(piece.tokens))


def _gathered(state: Tensor, table: Tensor) -> Tensor:
    """[R, heads, W * size, head size] of the blocks in `table` [R, W]."""
    rows, width = table.shape
    taken = state.index_select(0, table.flatten())
    return taken.view(rows, width * state.shape[1], *state.shape[2:]).transpose(1, 2)
