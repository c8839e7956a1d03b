"""One step of a run while it is under way."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rayburst.train.engines import Part
from rayburst.train.notices import Verdict

__all__ = ["Turn"]


@dataclass(slots=True)
class Turn:
    """`batch`: positions of the samples; `waited_s`: for data."""

    batch: range
    began_s: float
    waited_s: float = 0.0
    own_s: float | None = None
    """Until its last backward pass, which is where ranks begin to wait for each other."""
    part: Part | None = None
    is_ready: bool = False
    """`backward` was called for the part."""
    loss: float = math.nan
    is_done: bool = False
    verdict: Verdict | None = None
    broken: str = ""
    """How the group broke; the step, if it was not done, is done again by the next group."""
