"""Rank 0 tells how far the run is, about once a second: the driver, and who decides on growth."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from rayburst.train.progress import Meter, Progress

__all__ = ["Costs", "Teller"]

_INTERVAL_S = 1.0


class Costs(Protocol):
    """What a keeper has measured, in seconds; None before the first checkpoint."""

    @property
    def blocked_s(self) -> float | None:
        """How long training stood still for the last checkpoint."""

    @property
    def between_s(self) -> float | None:
        """Mean time between interruptions of this group."""


class Teller:
    """Turns finished steps into `Progress`, and gives it to `publish`.

    `before`: of this process in the group as it was, when it has changed in place.
    """

    def __init__(
        self,
        publish: Callable[[bytes], None],
        *,
        world: int,
        resumed_from: int,
        steps: int,
        tokens_per_step: int,
        clock: Callable[[], float],
        before: Teller | None = None,
    ) -> None:
        self._publish, self._clock = publish, clock
        self._world, self._resumed_from, self._steps = world, resumed_from, steps
        self._tokens = tokens_per_step
        self._meter = Meter(steps=steps)
        self._since_s: float | None = None
        self._told_s = float("-inf")
        self._progress: Progress | None = None
        # a group that broke before it had finished a step has seen nothing
        is_new = before is not None and before._last_s is None
        self._before: Teller | None = before._before if before and is_new else before
        self._stopped_s: float | None = before._stopped_s if before else None
        self._seen_s: float | None = None  # what this group's making has stopped this rank
        self._last_s: float | None = None
        self._step_s: float | None = None

    def step(
        self,
        step: int,
        loss: float,
        metrics: Mapping[str, Any],
        costs: Costs,
        *,
        stopped_s: float = 0.0,
    ) -> None:
        """`step` was done with this mean loss, and so far checkpoints and interruptions cost so.

        `stopped_s`: the longest `seen_stop_s` of all ranks; one that has just joined saw no stop.
        """
        now_s = self._clock()
        self._since_s = now_s if self._since_s is None else self._since_s
        self._notice_stop(now_s)
        if self._seen_s is not None or stopped_s:
            self._stopped_s = round(max(self.seen_stop_s, stopped_s), 3)
        tokens_per_s, eta_s = self._meter.add(t=now_s, step=step, tokens=self._tokens)
        self._progress = Progress(
            t=now_s,
            since=self._since_s,
            step=step,
            steps=self._steps,
            resumed_from=self._resumed_from,
            world=self._world,
            loss=loss,
            val_bits_per_byte=metrics.get("val_bits_per_byte"),
            tokens_per_s=tokens_per_s if self._tokens else None,
            eta_s=eta_s,
            checkpoint_s=costs.blocked_s,
            between_s=costs.between_s,
            stopped_s=self._stopped_s,
        )
        is_edge = step in (self._resumed_from + 1, self._steps)
        if is_edge or now_s - self._told_s >= _INTERVAL_S:
            self.tell()

    def _notice_stop(self, now_s: float) -> None:
        """How long the change before this step took, and how long steps take."""
        if self._last_s is not None:
            self._step_s = now_s - self._last_s
        elif self._before is not None and self._before._last_s is not None:
            gap_s = now_s - self._before._last_s
            self._seen_s = max(0.0, gap_s - (self._before._step_s or 0.0))
        self._last_s, self._before = now_s, None

    @property
    def seen_stop_s(self) -> float:
        """How long no step was finished when this group was made; 0.0 where it was not seen."""
        return self._seen_s or 0.0

    def tell(self, state: str = "running") -> None:
        """Publish now, with why the group stops."""
        if self._progress is None:
            return
        fields = {**json.loads(self._progress.to_json()), "state": state}
        self._publish(json.dumps(fields).encode())
        self._told_s = self._clock()
