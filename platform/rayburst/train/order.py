"""Which sample comes when, and which random numbers belong to it. Pure.

    order = Order(samples=50_000, global_batch=64, seed=0)
    order.indices(range(128, 192))           # (epochs, indices) of these positions of the run

Positions count the samples of the whole run. Position p is item p % n of epoch p // n, in an order
drawn from (seed, epoch); so each sample comes once an epoch, whoever computes it and however often
the run is interrupted, and to resume needs one number. The last global batch of a run with `epochs`
may be smaller; batches run over the end of an epoch into the next one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rayburst.train.permutation import permute, words

__all__ = ["Order", "order_of", "rank_slice", "seed_of"]

Ints = npt.NDArray[np.int64]


def rank_slice(count: int, rank: int, world: int) -> range:
    """The part of `count` items that `rank` of `world` takes; sizes differ by at most one."""
    return range(count * rank // world, count * (rank + 1) // world)


def seed_of(seed: int, step: int, lane: int) -> int:
    """The 32-bit seed of the random numbers of one lane (a shard, a worker) in one step."""
    return int(words(int(words(seed, step, 1)[0]), lane, 1)[0] >> np.uint64(32))


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """The order of `samples` items. `limit`: where the run ends, in samples; None for never.

    `arrange(epoch, places)` is the order within an epoch, a permutation; None draws one freely.
    """

    samples: int
    global_batch: int
    seed: int
    limit: int | None = None
    arrange: Callable[[int, Ints], Ints] | None = None

    def __post_init__(self) -> None:
        if self.samples < 1 or self.global_batch < 1:
            raise ValueError(
                f"{self.samples} samples in global batches of {self.global_batch}: give a dataset "
                "that holds samples, and global_batch=1 or more"
            )

    def batch(self, position: int) -> range:
        """The positions of the global batch that begins at `position`; empty at the end."""
        stop = position + self.global_batch
        return range(position, stop if self.limit is None else max(position, min(stop, self.limit)))

    def indices(self, positions: range) -> tuple[Ints, Ints]:
        """Epoch and index of the sample at each of `positions`."""
        at = np.arange(positions.start, positions.stop, dtype=np.int64)
        epochs, places = at // self.samples, at % self.samples
        out = np.empty_like(at)
        for epoch in np.unique(epochs).tolist():
            chosen = epochs == epoch
            if self.arrange is not None:
                out[chosen] = self.arrange(epoch, places[chosen])
            else:
                out[chosen] = permute(places[chosen], self.samples, seed=self.seed, epoch=epoch)
        return epochs, out


def order_of(
    dataset: Any, *, global_batch: int, seed: int, epochs: int | None, steps: int | None
) -> Order:
    """The order of `dataset`, whose end `epochs` or `steps` say. ValueError for both or none."""
    if (epochs is None) == (steps is None):
        raise ValueError("batches(): give the end of the run, either epochs=... or steps=...")
    return Order(
        samples=len(dataset),
        global_batch=global_batch,
        seed=seed,
        limit=epochs * len(dataset) if epochs is not None else (steps or 0) * global_batch,
        arrange=getattr(dataset, "arrange", None),
    )
