"""Workers that hold the others up: slow for the whole of the newest steps. Pure: the run log in.

A step is as fast as its slowest worker. What each one needs for itself, from the start of a step
until its last backward pass begins (fetching data and the forward passes), is `own_s` in its step
records; the rest is spent with the others, and says nothing about anybody. For a model that
`fully_shard` has spread a forward pass is spent with the others too, and nobody is named.

Nobody is ended for being slow: a machine that is throttled, or whose neighbour is loud, still does
its share. A worker that does nothing at all is another matter; see `InPlaceOptions.hung_after_s`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from rayburst.report.history import BEGINS

__all__ = ["Straggler", "stragglers"]

STEPS = 20
"""How many of the newest steps are looked at, and the fewest that say something: a quarter."""
FACTOR = 1.5
SHARE = 0.2


@dataclass(frozen=True, kw_only=True, slots=True)
class Straggler:
    """`own_s`: what it needs for itself in a step; `others_s`: what the others do. Medians."""

    rank: int
    host: str
    own_s: float
    others_s: float

    def to_json(self) -> dict[str, Any]:
        """For a file or a page."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"{self.host} (rank {self.rank}) holds the others up: it needs {self.own_s:.2f} s a "
            f"step, they need {self.others_s:.2f} s"
        )


def stragglers(records: Sequence[Mapping[str, Any]]) -> list[Straggler]:
    """Who is slower than the others by half, and by a fifth of a step, in the newest group."""
    began = [r for r in records if r["kind"] in BEGINS]
    if not began:
        return []
    since_s = began[-1]["t"]  # a group steps once all are there
    steps = [
        r
        for r in records
        if r["kind"] == "step" and r["t"] >= since_s and r.get("own_s") is not None
    ]
    last = max((r["step"] for r in steps), default=0)
    recent = [r for r in steps if r["step"] > last - STEPS]
    own: dict[int, list[float]] = {}
    for record in recent:
        own.setdefault(record["rank"], []).append(record["own_s"])
    usual = {rank: median(times) for rank, times in own.items() if len(times) >= STEPS // 4}
    hosts = {r["rank"]: str(r.get("host", "unknown")) for r in began}
    worth_s = SHARE * median(r["duration_s"] for r in recent) if recent else 0.0
    found = []
    for rank, own_s in sorted(usual.items()):
        others = [other_s for other, other_s in usual.items() if other != rank]
        if not others:
            continue
        others_s = median(others)
        if own_s > FACTOR * others_s and own_s - others_s > worth_s:
            found.append(Straggler(rank=rank, host=hosts[rank], own_s=own_s, others_s=others_s))
    return found
