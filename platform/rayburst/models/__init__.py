"""Models in production: versions that never change, their variants, what is served.

    from rayburst.models import ModelRegistry

    models = ModelRegistry.open("s3://fleet")
    models.publish("first@300", name="gpt", variants=["bf16", "int8"])

registry.py says how it is kept; docs/models.md shows it. torch loads when a model is first touched.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rayburst.models.manifest import Measured, ModelVersion, Variant
    from rayburst.models.moves import Move
    from rayburst.models.registry import ModelRegistry

__all__ = ["Measured", "ModelRegistry", "ModelVersion", "Move", "Variant"]

_HOMES = {
    "Measured": "manifest",
    "ModelRegistry": "registry",
    "ModelVersion": "manifest",
    "Move": "moves",
    "Variant": "manifest",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        known = ", ".join(__all__)
        raise AttributeError(f"rayburst.models has no {name!r}; it has: {known}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
