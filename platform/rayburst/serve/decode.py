"""What a served language model computes: continue prompts, score texts, many at a time.

Rows of different lengths share one forward pass: they are padded on the right, and causal
attention never looks there, so each row gets what it would get alone (up to the rounding of
floats). Every request samples with its own generator, so a seed gives the same text in any
company. Bytes are the vocabulary. Within the model's block new bytes are continued from memory
(kv_cache.py); beyond it the model reads its last block again for every byte.

Blocking calls; run them off the event loop. The module knows no HTTP and no Ray.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from rayburst.serve.kv_cache import Memory
from rayburst.train.gpt import GPT

__all__ = ["Generation", "Score", "generate", "likeliest", "score"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Generation:
    """One request to continue `prompt`. `temperature` 0 takes the likeliest byte."""

    prompt: bytes
    max_new_tokens: int
    temperature: float
    top_k: int | None
    seed: int

    def __post_init__(self) -> None:
        if not self.prompt:
            raise ValueError("prompt is empty: the model continues text, give one byte or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """How well the model predicts a text. The first byte has no context and is not scored."""

    bits_per_byte: float
    scored_bytes: int


@dataclass(slots=True)
class _Row:
    """A text that is being written."""

    request: Generation
    tokens: list[int]
    generator: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.request.seed)

    @property
    def is_done(self) -> bool:
        return len(self.tokens) - len(self.request.prompt) >= self.request.max_new_tokens


@torch.inference_mode()
def generate(model: GPT, requests: Sequence[Generation]) -> list[bytes]:
    """The bytes that follow each prompt, `max_new_tokens` of them, in the order given.

    Rows that have their bytes leave the batch; the others go on without them.
    """
    rows = [_Row(request=r, tokens=list(r.prompt)) for r in requests]
    block = model.config.block_size
    short = [row for row in rows if len(row.tokens) <= block]
    _continue_from_memory(model, short)
    while live := [row for row in rows if not row.is_done]:
        contexts = [row.tokens[-block:] for row in live]
        logits = _logits(model, contexts)
        for place, (row, context) in enumerate(zip(live, contexts, strict=True)):
            row.tokens.append(_next_token(logits[place, len(context) - 1], row))
    return [bytes(row.tokens[len(row.request.prompt) :]) for row in rows]


def _continue_from_memory(model: GPT, rows: list[_Row]) -> None:
    """Writes on until each row is done or fills the model's block."""
    block = model.config.block_size
    if not rows:
        return
    length = max(len(row.tokens) + row.request.max_new_tokens for row in rows)
    memory = Memory.of(model, rows=len(rows), length=min(length, block))
    idx = _padded([row.tokens for row in rows])
    logits = memory.read(idx, torch.arange(idx.shape[1]).expand_as(idx)).float().cpu()
    last = [logits[place, len(row.tokens) - 1] for place, row in enumerate(rows)]
    while True:
        for row, scores in zip(rows, last, strict=True):
            row.tokens.append(_next_token(scores, row))
        going = [n for n, row in enumerate(rows) if not row.is_done and len(row.tokens) <= block]
        if not going:
            return
        if len(going) < len(rows):
            rows = [rows[n] for n in going]
            memory.keep(going)
        newest = torch.tensor([[row.tokens[-1]] for row in rows])
        positions = torch.tensor([[len(row.tokens) - 1] for row in rows])
        last = list(memory.read(newest, positions)[:, 0].float().cpu())


@torch.inference_mode()
def score(model: GPT, texts: Sequence[bytes], *, rows_at_once: int) -> list[Score]:
    """Bits per byte of each text of two bytes or more, in the order given.

    A text longer than the model's block is read in blocks one after the other, as validation
    does it. At most `rows_at_once` blocks share a forward pass.
    """
    for text in texts:
        if len(text) < 2:
            raise ValueError(f"a text of {len(text)} bytes has nothing to predict: give 2 or more")
    block = model.config.block_size
    pieces = [
        (place, text[start : start + block + 1])
        for place, text in enumerate(texts)
        for start in range(0, len(text) - 1, block)
    ]
    pieces.sort(key=lambda piece: len(piece[1]))  # similar lengths together pad least
    nats = [0.0] * len(texts)
    for first in range(0, len(pieces), rows_at_once):
        chunk = pieces[first : first + rows_at_once]
        for (place, _), loss in zip(chunk, _losses(model, [t for _, t in chunk]), strict=True):
            nats[place] += loss
    return [
        Score(
            bits_per_byte=total / math.log(2) / (len(text) - 1),
            scored_bytes=len(text) - 1,
        )
        for total, text in zip(nats, texts, strict=True)
    ]


@torch.inference_mode()
def likeliest(model: GPT, texts: Sequence[bytes], count: int) -> list[list[tuple[int, float]]]:
    """For each text of a byte or more: the `count` likeliest next bytes, and their probabilities.

    The model reads the last block of a text.
    """
    contexts = [list(text[-model.config.block_size :]) for text in texts]
    logits = _logits(model, contexts)
    last = logits[torch.arange(len(texts)), torch.tensor([len(c) - 1 for c in contexts])]
    top = last.softmax(dim=-1).topk(min(count, last.shape[-1]), dim=-1)
    return [
        list(zip(bytes_, probabilities, strict=True))
        for bytes_, probabilities in zip(top.indices.tolist(), top.values.tolist(), strict=True)
    ]


def _logits(model: GPT, contexts: Sequence[Sequence[int]]) -> Tensor:
    """Logits [B, T, V] of rows of mixed lengths; only a row's own positions mean anything."""
    device = next(model.parameters()).device
    logits: Tensor = model(_padded(contexts).to(device))[0]
    return logits.float().cpu()


def _padded(texts: Sequence[Sequence[int]]) -> Tensor:
    """LongTensor [B, T] of texts of mixed lengths, filled up with zeros on the right."""
    idx = torch.zeros(len(texts), max(len(text) for text in texts), dtype=torch.long)
    for place, text in enumerate(texts):
        idx[place, : len(text)] = torch.tensor(text)
    return idx


def _losses(model: GPT, texts: Sequence[bytes]) -> list[float]:
    """Nats to predict every byte of each text but its first, each at most block + 1 long."""
    logits = _logits(model, [list(text[:-1]) for text in texts])
    return [
        float(
            F.cross_entropy(
                logits[place, : len(text) - 1],
                torch.tensor(list(text[1:])),
                reduction="sum",
            )
        )
        for place, text in enumerate(texts)
    ]


def _next_token(logits: Tensor, row: _Row) -> int:
    """Samples one token from `logits` [V] as `row` asks."""
    request = row.request
    if request.temperature == 0:
        return int(logits.argmax())
    logits = logits / request.temperature
    if request.top_k is not None:
        least = logits.topk(min(request.top_k, logits.shape[-1])).values[-1]
        logits = logits.masked_fill(logits < least, -math.inf)
    return int(torch.multinomial(F.softmax(logits, dim=-1), 1, generator=row.generator))
