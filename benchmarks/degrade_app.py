"""What benchmarks/degrade.py serves: the next byte after a text, by the variants of a version."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

import rayburst as rb
from rayburst.models import ModelRegistry
from rayburst.train.gpt import GPT


class NextByte:
    """A text in, the likeliest next byte out."""

    variants: Mapping[str, float] = {}

    def load(self, store: str, ref: str, rungs: dict[str, float], block: int) -> None:
        """`rungs`: variants of the version by agreement, the most faithful first."""
        torch.set_num_threads(1)
        self.variants = rungs
        self.example = "e" * block
        self._registry, self._ref = ModelRegistry.open(store), ref
        self._models: dict[str, GPT] = {}

    def load_variant(self, name: str) -> None:
        self._models[name] = self._registry.load(self._ref, name)[0]

    @torch.inference_mode()
    def predict(self, batch: list[str], variant: str) -> list[Any]:
        rows = torch.tensor([list(text.encode("latin-1")) for text in batch])
        return self._models[variant](rows)[0][:, -1].argmax(-1).tolist()


def app(options: dict[str, Any], *args: Any) -> Any:
    """The application with these options; the arguments are `load`'s."""
    return rb.serve.model(**options)(NextByte).bind(*args)
