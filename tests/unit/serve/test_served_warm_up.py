"""A replica knows what each form costs before the first request."""

from __future__ import annotations

from typing import ClassVar

from rayburst.serve.options import ModelOptions
from rayburst.serve.served import ModelPart


class Forms:
    """Its example is known once it is loaded."""

    variants: ClassVar[dict[str, float]] = {"fp32": 1.0, "int8": 0.99}

    def load(self) -> None:
        self.example = "e" * 4
        self.asked: list[tuple[int, str]] = []

    def predict(self, batch: list[str], variant: str) -> list[str]:
        self.asked.append((len(batch), variant))
        return batch


def test_every_form_is_tried_with_an_example_that_load_sets() -> None:
    part = ModelPart(Forms, ModelOptions(slo_ms=100, max_batch=4), (), {})
    asked = set(part._model.asked)
    assert asked == {(n, variant) for n in (1, 2, 4) for variant in Forms.variants}
