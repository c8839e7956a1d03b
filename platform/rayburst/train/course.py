"""Where a run goes: its data, order and end; and whether a checkpoint belongs to it.

Words of it are bound into every checkpoint. Knows no model and no files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rayburst.errors import DataError, ExactModeError
from rayburst.train.hardware import check_same
from rayburst.train.order import Order
from rayburst.train.run_options import RunOptions

__all__ = ["At", "Course"]


@dataclass(slots=True)
class At:
    """How far a run is. `left_out`: steps whose gradient was not finite."""

    step: int = 0
    samples: int = 0
    left_out: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Course:
    """`fingerprint` tells one dataset from another of the same length; "" where nobody knows."""

    order: Order
    fingerprint: str
    options: RunOptions
    hardware: Mapping[str, Any]
    config: Mapping[str, Any]
    versions: Mapping[str, str] = field(default_factory=dict)
    tokens_per_step: int = 0

    @property
    def steps(self) -> int:
        """How many steps the whole run has; 0 for one without an end."""
        return -(-(self.order.limit or 0) // self.order.global_batch)

    def goes_on(self, at: At) -> bool:
        """Whether there are samples left."""
        return len(self.order.batch(at.samples)) > 0

    def data(self, at: At) -> dict[str, Any]:
        """The data position, as checkpoints carry it."""
        return {
            "step": at.step,
            "samples": at.samples,
            "left_out": at.left_out,
            "seed": self.order.seed,
            "size": self.order.samples,
            "global_batch": self.order.global_batch,
            "fingerprint": self.fingerprint,
        }

    def words(self, *, run: str, world: int) -> dict[str, Any]:
        """What else a checkpoint says about how it was made. `user`: the config of the caller."""
        return {
            "run": run,
            "mode": self.options.mode,
            "shards": self.options.shards,
            "hardware": dict(self.hardware),
            "world": world,
            "versions": dict(self.versions),
            "user": dict(self.config),
        }

    def resume(self, uri: str, data: Mapping[str, Any], words: Mapping[str, Any]) -> At:
        """The position of the checkpoint `uri`. DataError, ExactModeError: of another run."""
        mine = self.data(At())
        for key, means in (
            ("fingerprint", "other data"),
            ("size", "another number of samples"),
            ("seed", "another seed"),
        ):
            if data[key] != mine[key]:
                raise DataError(
                    f"{uri} was trained with {means} ({key} {data[key]!r}; now {mine[key]!r}): "
                    "samples would be left out or come twice. Give what it began with, or a new "
                    "run name"
                )
        if self.options.mode == "exact":
            self._resume_exactly(uri, data, words)
        return At(step=data["step"], samples=data["samples"], left_out=data["left_out"])

    def _resume_exactly(self, uri: str, data: Mapping[str, Any], words: Mapping[str, Any]) -> None:
        mine = {
            "mode": self.options.mode,
            "shards": self.options.shards,
            "global_batch": self.order.global_batch,
        }
        theirs = {**words, "global_batch": data["global_batch"]}
        for key, value in mine.items():
            if theirs[key] != value:
                raise ExactModeError(
                    f"{uri} was made with {key}={theirs[key]!r}, this run has {value!r}: the bits "
                    "would differ. Give what it began with, or RunOptions(mode='fast')"
                )
        check_same(self.hardware, words["hardware"], whose=uri)
