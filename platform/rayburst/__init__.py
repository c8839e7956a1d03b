"""rayburst: an elastic ML platform on Ray.

    import rayburst as rb

    p = rb.connect()
    job = p.submit("python jobs/train_lm.py --preset micro")
    job.wait()
    p.deploy("serve_apps.lm:app")
    p.cost()

Ray and torch load when something first needs them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rayburst import serve
    from rayburst.errors import RayburstError
    from rayburst.job import Job
    from rayburst.runtime import runtime_env
    from rayburst.sdk import Platform, connect

__version__ = "0.1.0"
__all__ = [
    "Job",
    "Platform",
    "RayburstError",
    "__version__",
    "connect",
    "runtime_env",
    "serve",
]

_HOMES = {
    "Job": "rayburst.job",
    "Platform": "rayburst.sdk",
    "RayburstError": "rayburst.errors",
    "connect": "rayburst.sdk",
    "runtime_env": "rayburst.runtime",
}
_PACKAGES = ("serve",)


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return import_module(f"rayburst.{name}")
    if name not in _HOMES:
        known = ", ".join(__all__)
        raise AttributeError(f"rayburst has no {name!r}; it has: {known}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return list(__all__)
