"""When a running group is restarted to grow. PURE: sizes and progress in, a decision out.

A restart stops training for about `restart_s` (processes start, torch loads, the checkpoint is
read). It pays when the time it takes off what is left is more than that. How far the run is comes
from rank 0 (`rayburst.train.progress`); without that, every growth is taken.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

__all__ = ["GrowthOptions", "growth", "time_saved_s"]


@dataclass(frozen=True, kw_only=True, slots=True)
class GrowthOptions:
    """`start_patience_s`: how long the first start waits for the full size once the least is there.
    `restart_s`: what a restart costs. `leave_within_s`: how long a group may take to save and leave
    when it is asked to; after that it is restarted as it is.
    """

    start_patience_s: float = 10.0
    restart_s: float = 15.0
    leave_within_s: float = 30.0

    def __post_init__(self) -> None:
        for name in ("start_patience_s", "restart_s", "leave_within_s"):
            if getattr(self, name) < 0:
                raise ValueError(f"GrowthOptions({name}={getattr(self, name)}): give 0 or more")


def growth(
    size: int,
    possible: int,
    progress: bytes | None,
    options: GrowthOptions,
    *,
    in_place_s: float | None = None,
) -> bool:
    """Whether a group of `size` workers should go on with `possible` ones.

    In place it trains while the new ones get ready, for about `restart_s`, and stands still for
    `in_place_s` only.
    """
    if possible <= size:
        return False
    left_s = _time_left_s(progress)
    if left_s is None:
        return True
    if in_place_s is None:
        return time_saved_s(left_s, size, possible) > options.restart_s
    return time_saved_s(left_s - options.restart_s, size, possible) > in_place_s


def time_saved_s(left_s: float, size: int, possible: int) -> float:
    """What `possible` workers take off `left_s` seconds of `size` workers, work shared evenly."""
    return left_s * (1 - size / possible)


def _time_left_s(progress: bytes | None) -> float | None:
    if progress is None:
        return None
    try:
        left = json.loads(progress).get("eta_s")
        return None if left is None else float(left)
    except (ValueError, AttributeError, TypeError):
        return None
