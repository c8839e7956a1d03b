"""From a PyTorch loop to an elastic Ray Train run: model, text, trainer, run log, checkpoints.

Importing this package loads neither Ray nor torch; its modules do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rayburst.train.parallel.shape import plan_layout

__all__ = ["plan_layout"]


def __getattr__(name: str) -> Any:
    if name != "plan_layout":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from rayburst.train.parallel.shape import plan_layout

    return plan_layout
