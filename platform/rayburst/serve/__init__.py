"""Serving: a model class becomes a batched Ray Serve application under a latency promise.

    import rayburst as rb

    @rb.serve.model(slo_ms=100)
    class Classifier: ...

served.py says how; docs/serving.md shows it. Ray loads when `model` is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rayburst.serve.options import ModelOptions, Replicas, TenantLimit
    from rayburst.serve.served import Served, model

__all__ = ["ModelOptions", "Replicas", "Served", "TenantLimit", "model"]

_HOMES = {
    "ModelOptions": "rayburst.serve.options",
    "Replicas": "rayburst.serve.options",
    "Served": "rayburst.serve.served",
    "TenantLimit": "rayburst.serve.options",
    "model": "rayburst.serve.served",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        known = ", ".join(__all__)
        raise AttributeError(f"rayburst.serve has no {name!r}; it has: {known}")
    return getattr(import_module(_HOMES[name]), name)
