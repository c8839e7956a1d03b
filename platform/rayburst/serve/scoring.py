"""Texts are scored under a latency promise, by the variants of one model along its ladder.

    scorer = Scorer(variants={"fp32": 1.0, "bf16": 0.999}, load=load, block_size=128)
    endpoint = Endpoint(scorer, options, Codec.of(Scorer), name="gpt@3")
    score, variant = await endpoint.ask_told(b"some text")

`load(name)` gives a variant as a torch module, proven; endpoint.py calls for it when it is needed.
Texts of like length share a batch. Blocking, but for what the endpoint does; knows no HTTP.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from rayburst.serve import decode
from rayburst.train.gpt import GPT

__all__ = ["Scorer"]


class Scorer:
    """A served model (served.py) whose forms are the variants of a language model."""

    variants: Mapping[str, float] = {}  # the ladder: a name, and how often it agrees with the first

    def __init__(
        self,
        *,
        variants: Mapping[str, float],
        load: Callable[[str], GPT],
        block_size: int,
        rows_at_once: int,
    ) -> None:
        self.variants = dict(variants)
        self.example = b"e" * (block_size + 1)  # as much as one pass reads
        self._load, self._rows_at_once = load, rows_at_once
        self._models: dict[str, GPT] = {}

    @property
    def loaded(self) -> frozenset[str]:
        """The variants that are in memory."""
        return frozenset(self._models)

    def load_variant(self, name: str) -> None:
        """Loads one, unless it is there."""
        if name not in self._models:
            self._models[name] = self._load(name)

    def predict(self, batch: list[bytes], variant: str) -> list[decode.Score]:
        """Scores of texts, each of two bytes or more."""
        return decode.score(self._models[variant], batch, rows_at_once=self._rows_at_once)
