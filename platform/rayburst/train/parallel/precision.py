"""Number formats of a run: full, bfloat16 or half precision, with weights kept in float32.

Layouts without sharding compute under torch's autocast; sharded ones under FSDP2's policy, which
also gathers weights in the short format and reduces gradients in float32. float16 needs its loss
scaled, or small gradients become zero (Micikevicius et al. 2018, https://arxiv.org/abs/1710.03740).
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch.distributed.fsdp import MixedPrecisionPolicy

from rayburst.errors import LayoutError

__all__ = ["LossScale", "Precision", "compute_dtype", "sharding_policy"]

Precision = Literal["fp32", "bf16", "fp16"]
_DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
_LARGEST_SCALE = 2.0**24


def compute_dtype(precision: str) -> torch.dtype | None:
    """What matrix products are computed in; None is as the weights are. LayoutError if unknown."""
    if precision not in _DTYPES:
        raise LayoutError(f"precision {precision!r}: give one of {', '.join(get_args(Precision))}")
    return _DTYPES[precision]


def sharding_policy(precision: str) -> MixedPrecisionPolicy:
    """FSDP2's policy: compute and gather in `precision`, reduce in float32."""
    dtype = compute_dtype(precision)
    if dtype is None:
        return MixedPrecisionPolicy()
    return MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)


class LossScale:
    """The factor on a float16 loss: halved when gradients overflow, doubled after a quiet time.

    torch's GradScaler decides on each rank from the gradients that lie there. Here a stage or a
    shard may overflow alone, so the decision is taken from the norm over all of them.
    """

    def __init__(self, precision: str, *, start: float = 2.0**16, quiet_steps: int = 1000) -> None:
        self.is_used = precision == "fp16"
        self.value = start if self.is_used else 1.0
        self._quiet_steps = quiet_steps
        self._quiet = 0

    def update(self, *, is_finite: bool) -> None:
        """Take notice of a step whose gradients were finite or not."""
        if not self.is_used:
            return
        if not is_finite:
            self.value, self._quiet = max(1.0, self.value / 2), 0
            return
        self._quiet += 1
        if self._quiet >= self._quiet_steps:
            self.value, self._quiet = min(_LARGEST_SCALE, self.value * 2), 0

    def state(self) -> dict[str, Any]:
        """To be saved; the same on all ranks."""
        return {"value": self.value, "quiet": self._quiet}

    def load(self, state: dict[str, Any]) -> None:
        """Take up what `state` gave; a run in another precision keeps its own scale."""
        if self.is_used and state["value"] > 1.0:
            self.value, self._quiet = float(state["value"]), int(state["quiet"])
