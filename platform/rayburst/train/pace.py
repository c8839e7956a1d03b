"""When to take a checkpoint, and when a resize repays itself. Pure: measured numbers in, decisions
with those numbers out.

**Interval.** A checkpoint blocks training for C, is durable L after it was begun, and interruptions
come every M on average. Time lost per second of training with interval T is C/T for saving and, at
each interruption, what was done since the last durable checkpoint: T/2 + L on average. Minimising
C/T + (T/2 + L)/M gives T = sqrt(2 C M) (Young, A first order approximation to the optimum
checkpoint interval, 1974; Daly 2006 refines it for C near M). One save runs at a time, so T is not
below L:

    T* = max(L, sqrt(2 C M))

**M.** A worker's rate of interruptions is estimated from what was seen (n interruptions in t
worker-seconds), with one interruption in `PRIOR_S` as the prior: the posterior mean of a Poisson
rate under a Gamma prior. Each pool has a rate of its own, and a group is interrupted as often as
all its workers together.

**Snapshots** of a spread model, in a peer's memory alone, are taken as often as may be: one at a
time, and so seldom that training stands still for them for at most `SNAPSHOT_SHARE` of its time.

**Resize.** More workers shorten what is left; the change costs its stop on every worker. It pays
when the gain over the time that the new size is expected to last exceeds that cost.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = [
    "PRIOR_S",
    "SNAPSHOT_SHARE",
    "Pace",
    "Stay",
    "checkpoint_pace",
    "mean_between_s",
    "resize_gain_s",
    "snapshot_interval_s",
]

PRIOR_S = 4 * 3600.0
"""Before anything is known of a worker: one interruption in four hours; a busy spot market."""
LEAST_INTERVAL_S = 1.0
SNAPSHOT_SHARE = 0.02


@dataclass(frozen=True, kw_only=True, slots=True)
class Pace:
    """A checkpoint interval and the numbers it follows from, in seconds."""

    interval_s: float
    blocked_s: float
    durable_s: float
    between_s: float
    is_bound_by_store: bool
    """Saving takes longer than the interval that would be best."""


def checkpoint_pace(*, blocked_s: float, durable_s: float, between_s: float) -> Pace:
    """T* from C, L and M. ValueError for numbers below 0, or M of 0."""
    if blocked_s < 0 or durable_s < 0 or between_s <= 0:
        raise ValueError(
            f"blocked_s={blocked_s}, durable_s={durable_s}, between_s={between_s}: give times of 0 "
            "or more, and a mean time between interruptions above 0"
        )
    best_s = math.sqrt(2 * blocked_s * between_s)
    return Pace(
        interval_s=max(best_s, durable_s, LEAST_INTERVAL_S),
        blocked_s=blocked_s,
        durable_s=durable_s,
        between_s=between_s,
        is_bound_by_store=durable_s > best_s,
    )


def snapshot_interval_s(*, blocked_s: float, whole_s: float) -> float:
    """Seconds from one snapshot to the next. `blocked_s`: how long training stands still for one;
    `whole_s`: until the peer has it whole. ValueError for numbers below 0.
    """
    if blocked_s < 0 or whole_s < 0:
        raise ValueError(f"blocked_s={blocked_s}, whole_s={whole_s}: give times of 0 or more")
    return max(whole_s, blocked_s / SNAPSHOT_SHARE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Stay:
    """What was seen of some workers: how long they were watched, and how often one was taken."""

    watched_s: float = 0.0
    interruptions: int = 0


def mean_between_s(
    seen: Mapping[str, Stay], *, workers: Mapping[str, int], prior_s: float = PRIOR_S
) -> float:
    """Mean seconds between interruptions of a group with `workers` by pool, from what was `seen`.

    ValueError for a group without a worker.
    """
    if sum(workers.values()) < 1:
        raise ValueError(f"workers={dict(workers)}: a group has at least one worker")
    per_s = 0.0
    for pool, count in workers.items():
        stay = seen.get(pool, Stay())
        per_s += count * (1 + stay.interruptions) / (prior_s + stay.watched_s)
    return 1 / per_s


def resize_gain_s(
    *, size: int, possible: int, left_s: float, stay_s: float, stop_s: float
) -> float:
    """Seconds that a resize from `size` to `possible` workers saves; below 0 it does not pay.

    `left_s`: time the run still takes at `size`. `stay_s`: how long the new size is expected to
    last (its mean time between interruptions). `stop_s`: how long the change stops all workers.
    Work is taken to spread evenly: in t seconds `possible` workers do what takes t possible/size.
    """
    if possible == size:
        return 0.0
    lasting_s = min(stay_s, max(0.0, left_s * size / possible))
    return lasting_s * (possible / size - 1) - stop_s
