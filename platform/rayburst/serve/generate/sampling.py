"""Tokens from logits, each row by its own request and with its own random numbers.

    tokens = draw(logits, requests, generators)      # logits [R, V] of R requests

Every row is computed as it would be alone, so a request's token depends on its logits and its
generator only, not on the batch. Drawing is the Gumbel-max trick in the form that torch.multinomial
has: the largest of probability over exponential noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from rayburst.errors import RequestFailedError
from rayburst.serve.generate.request import Request

__all__ = ["draw"]


def draw(
    logits: Tensor, requests: Sequence[Request], generators: Sequence[torch.Generator]
) -> list[int]:
    """One token id for each row of `logits` [R, V]; generators are on the CPU.

    RequestFailedError: a row's largest number is not finite.
    """
    likeliest = logits.argmax(dim=-1, keepdim=True)  # NaN counts as the largest
    if not torch.isfinite(logits.gather(1, likeliest)).all():
        raise RequestFailedError("the model computes numbers that are not finite: nothing to write")
    chosen: list[int] = likeliest[:, 0].tolist()
    warm = [row for row, request in enumerate(requests) if request.temperature > 0]
    if not warm:
        return chosen
    asked = [requests[row] for row in warm]
    chances = _chances(logits[warm].float().cpu(), asked)
    noise = torch.empty_like(chances)
    for place, row in enumerate(warm):
        noise[place].exponential_(generator=generators[row])
    drawn: list[int] = (chances / noise).argmax(dim=-1).tolist()
    for row, token in zip(warm, drawn, strict=True):
        chosen[row] = token
    return chosen


def _chances(logits: Tensor, requests: Sequence[Request]) -> Tensor:
    """Probabilities [R, V] after temperature, top_k and top_p, in this order; ties are kept."""
    logits = logits / torch.tensor([[request.temperature] for request in requests])
    vocabulary = logits.shape[-1]
    if any(request.top_k is not None for request in requests):
        kept = [min(request.top_k or vocabulary, vocabulary) for request in requests]
        ranked = logits.sort(dim=-1, descending=True).values
        least = ranked.gather(1, torch.tensor([[k - 1] for k in kept]))
        logits = logits.masked_fill(logits < least, -math.inf)
    chances = F.softmax(logits, dim=-1)
    if any(request.top_p < 1 for request in requests):
        ranked = chances.sort(dim=-1, descending=True).values
        above = ranked.cumsum(dim=-1) - ranked  # the probability of all that is likelier
        wanted = torch.tensor([[request.top_p] for request in requests])
        number = ((above < wanted) | (wanted >= 1)).sum(dim=-1, keepdim=True).clamp(min=1)
        least = ranked.gather(1, number - 1)
        chances = chances.masked_fill(chances < least, 0.0)  # the largest quotient needs no sum
    return chances
