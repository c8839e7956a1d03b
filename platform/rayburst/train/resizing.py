"""Whether a running group grows. PURE: sizes, progress and measured costs in, a decision out.

    found = growth(2, 4, progress, options, stop_s=measured)
    found.pays; str(found)                    # the decision, and the numbers that it follows from

A change stops all workers for `stop_s`. It pays when what it takes off the time that is left, over
as long as the larger group is expected to last, is more than that: see `resize_gain_s` in
`rayburst.train.pace`. How far the run is, and how often its workers are interrupted, comes from
rank 0 (`rayburst.train.progress`); while nobody knows how far it is, every growth is taken.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rayburst.train.pace import PRIOR_S, resize_gain_s

__all__ = ["Growth", "GrowthOptions", "growth"]

RESTART_S = 15.0
"""What a restart costs until one was measured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GrowthOptions:
    """`start_patience_s`: how long the first start waits for the full size once the least is there.
    `restart_s`: what a restart costs; None takes what was measured. `leave_within_s`: how long a
    group may take to save and leave when it is asked to; after that it is restarted as it is.
    """

    start_patience_s: float = 10.0
    restart_s: float | None = None
    leave_within_s: float = 30.0

    def __post_init__(self) -> None:
        for name in ("start_patience_s", "restart_s", "leave_within_s"):
            if (getattr(self, name) or 0.0) < 0:
                raise ValueError(f"GrowthOptions({name}={getattr(self, name)}): give 0 or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class Growth:
    """A decision between two sizes, in workers, and what it follows from, in seconds.

    left_s: what the run still takes at `size`; None while nobody knows.
    stay_s: mean time between interruptions of a group of `possible` workers.
    ready_s: how long the group still trains at `size` while new workers get ready.
    stop_s: how long the change stops all workers.
    gain_s: what the growth saves, its cost taken off; None where `left_s` is, or nobody stays.
    """

    size: int
    possible: int
    left_s: float | None
    stay_s: float
    ready_s: float
    stop_s: float
    gain_s: float | None

    @property
    def pays(self) -> bool:
        """Whether to grow."""
        return self.possible > self.size and (self.gain_s is None or self.gain_s > 0)

    def to_json(self) -> dict[str, Any]:
        """For the run log."""
        return {**asdict(self), "pays": self.pays}

    def __str__(self) -> str:
        words = f"growth from {self.size} to {self.possible} workers "
        if not self.size:
            return words + "is taken: no other worker stays"
        if self.left_s is None or self.gain_s is None:
            return words + "is taken: nobody knows yet how much time is left"
        saves = f"saves {self.gain_s:.0f} s" if self.pays else "does not pay"
        return (
            f"{words}{saves}: {self.left_s:.0f} s are left, {self.possible} workers are expected "
            f"to last {self.stay_s:.0f} s, and the change stops them for {self.stop_s:.1f} s"
        )

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Growth:
        """From a record that `to_json` went into."""
        return cls(**{name: body[name] for name in cls.__dataclass_fields__})


def growth(
    size: int,
    possible: int,
    progress: bytes | None,
    options: GrowthOptions,
    *,
    restart_s: float | None = None,
    in_place_s: float | None = None,
) -> Growth:
    """Whether a group of `size` workers should go on with `possible` ones.

    Args:
        progress: what rank 0 published last.
        restart_s: what a restart took, as measured; None before one.
        in_place_s: where the group changes in place, what a change costs until one was measured. It
            trains while the new workers get ready, which takes them about as long as a restart.
    """
    told = _told(progress)
    if options.restart_s is not None:
        restart_s = options.restart_s
    elif restart_s is None:
        restart_s = RESTART_S
    stop_s, ready_s = restart_s, 0.0
    if in_place_s is not None:
        stop_s, ready_s = told.get("stopped_s", in_place_s), restart_s
    between_s = told.get("between_s", PRIOR_S)
    stay_s = between_s * told.get("world", 1.0) / possible if possible else math.inf
    left_s = told.get("eta_s")
    gain_s = None
    if left_s is not None and possible > size > 0:
        later_s = max(0.0, left_s - ready_s)
        gain_s = resize_gain_s(
            size=size, possible=possible, left_s=later_s, stay_s=stay_s, stop_s=stop_s
        )
    return Growth(
        size=size,
        possible=possible,
        left_s=left_s,
        stay_s=stay_s,
        ready_s=ready_s,
        stop_s=stop_s,
        gain_s=gain_s,
    )


def _told(progress: bytes | None) -> dict[str, float]:
    """The numbers that rank 0 has published; none of what cannot be read."""
    try:
        body = json.loads(progress or b"{}")
        names = ("eta_s", "between_s", "stopped_s", "world")
        return {name: float(body[name]) for name in names if body.get(name) is not None}
    except (ValueError, AttributeError, TypeError):
        return {}
