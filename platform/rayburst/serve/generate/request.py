"""What is asked of a model that writes: a prompt, how to choose tokens, where to end.

    Request(prompt=b"def main(", max_tokens=64, temperature=0.8, top_p=0.9, seed=7, stop=(b"\n\n",))

Pure. Bytes are the vocabulary, so a token is a byte.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Request"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One text to write. The same request gives the same text in any company.

    Attributes:
        prompt: what is continued; one byte or more.
        max_tokens: bytes to write at most.
        temperature: 0 takes the likeliest byte each time.
        top_k: sample among the k likeliest bytes only.
        top_p: sample among the fewest likeliest bytes that have this probability together.
        seed: of this request's own random numbers.
        stop: the text ends before the first of these that it would contain.
        salt: requests share what they have in common with those of the same salt only.
    """

    prompt: bytes
    max_tokens: int = 64
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[bytes, ...] = ()
    salt: bytes = b""

    def __post_init__(self) -> None:
        if not self.prompt:
            raise ValueError("prompt is empty: the model continues text, give one byte or more")
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens={self.max_tokens}: give 1 or more")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"temperature={self.temperature}: give 0 (likeliest byte) or more")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k={self.top_k}: give 1 or more, or leave it out")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p}: give a probability above 0, up to 1 (all)")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed={self.seed}: give a whole number from 0 to 2**63 - 1")
        if not all(self.stop):
            raise ValueError("stop has an empty text: give one byte or more, or leave it out")
