"""How a run goes. Pure: checked values, no more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

__all__ = ["Mode", "OnNonFinite", "RunOptions"]

Mode = Literal["fast", "exact"]
OnNonFinite = Literal["stop", "skip"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RunOptions:
    """How a run goes.

    Attributes:
        mode: "fast" uses torch's collectives; "exact" gives the same final bits at any world size
            and after any interruptions, on one class of machines.
        shards: into how many logical shards exact mode cuts the global batch.
        micro_batch: samples a worker takes at once in fast mode; 0 for all of its share.
        threads: of torch in this process. 0 is the worker's share of its node in fast mode, and 1
            in exact mode, where all machines must have the same number.
        checkpoint_every_s: a fixed interval; None takes the one that pays (`rayburst.train.pace`).
        checkpoints_kept: the newest so many stay.
        peer: under Ray, the newest snapshot is also held in another node's memory, where one has
            room for it (`rayburst.train.peer`).
        on_nonfinite: a step whose loss or gradient is not finite stops the run, or is left out and
            told, at most ten times in a row.
        leave_margin_s: how long before its deadline a node is left where that needs a checkpoint
            (`InPlaceOptions.leave_margin_s` where it does not).
    """

    mode: Mode = "fast"
    shards: int = 8
    micro_batch: int = 0
    threads: int = 0
    checkpoint_every_s: float | None = None
    checkpoints_kept: int = 3
    peer: bool = True
    on_nonfinite: OnNonFinite = "stop"
    leave_margin_s: float = 8.0

    def __post_init__(self) -> None:
        for name, kind in (("mode", Mode), ("on_nonfinite", OnNonFinite)):
            if getattr(self, name) not in get_args(kind):
                allowed = ", ".join(get_args(kind))
                raise ValueError(f"RunOptions({name}={getattr(self, name)!r}): allowed: {allowed}")
        least = {"shards": 1, "micro_batch": 0, "threads": 0, "checkpoints_kept": 1}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise ValueError(f"RunOptions({name}={getattr(self, name)}): give {bound} or more")
        if self.checkpoint_every_s is not None and self.checkpoint_every_s <= 0:
            raise ValueError(
                f"RunOptions(checkpoint_every_s={self.checkpoint_every_s}): give seconds above 0, "
                "or None for the interval that pays"
            )
