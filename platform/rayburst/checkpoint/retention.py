"""PURE: which checkpoints stay. Steps, metrics and pins in; what to keep, and why, out.

The newest one always stays, whatever the policy says. Deliberately knows no store and no clock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rayburst.errors import CheckpointError

__all__ = ["Best", "Retention", "keep"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Best:
    """Keep the `count` best by a metric that the saves were given."""

    metric: str
    count: int = 1
    mode: Literal["min", "max"] = "min"

    def __post_init__(self) -> None:
        if self.mode not in ("min", "max"):
            raise CheckpointError(f"Best(mode={self.mode!r}): allowed are 'min' and 'max'")
        if self.count < 1:
            raise CheckpointError(f"Best(count={self.count}): must be 1 or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class Retention:
    """What to keep: the newest `newest`, every step divisible by `every`, the best, the pinned."""

    newest: int = 3
    every: int | None = None
    best: Best | None = None

    def __post_init__(self) -> None:
        if self.newest < 1:
            raise CheckpointError(f"Retention(newest={self.newest}): the newest one always stays")
        if self.every is not None and self.every < 1:
            raise CheckpointError(f"Retention(every={self.every}): must be 1 or more, or None")


def keep(
    policy: Retention,
    steps: Sequence[int],
    metrics: Mapping[int, Mapping[str, float]],
    pinned: frozenset[int],
) -> dict[int, str]:
    """Steps that stay, each with its first reason. Steps without the metric are never best."""
    kept: dict[int, str] = {}
    ordered = sorted(steps, reverse=True)
    for step in ordered[: policy.newest]:
        kept.setdefault(step, f"one of the newest {policy.newest}")
    for step in ordered:
        if step in pinned:
            kept.setdefault(step, "pinned")
        if policy.every is not None and step % policy.every == 0:
            kept.setdefault(step, f"every {policy.every}")
    if policy.best is not None:
        for step in _best(policy.best, ordered, metrics):
            kept.setdefault(step, f"best {policy.best.metric}")
    return kept


def _best(
    best: Best, ordered: Sequence[int], metrics: Mapping[int, Mapping[str, float]]
) -> list[int]:
    sign = 1.0 if best.mode == "min" else -1.0
    scored = [
        (sign * metrics[step][best.metric], -step)
        for step in ordered
        if best.metric in metrics.get(step, {})
    ]
    return [-negative for _, negative in sorted(scored)[: best.count]]
