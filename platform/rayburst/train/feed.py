"""Batches of samples in the order of the run, fetched ahead of the step that needs them.

Two kinds of datasets:
- Any map-style dataset (`len(dataset)`, `dataset[i]`): torch's DataLoader fetches and collates, in
  `workers` processes, or in the training process where there are none. Random numbers of Python,
  numpy and torch are seeded for each sample by (seed, epoch, index), so augmentation belongs to the
  sample and not to whoever fetches it.
- A `Samples` dataset, which gives whole batches as a function of epochs and indices and draws no
  random numbers: a thread fetches ahead.
"""

from __future__ import annotations

import queue
import random
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch.utils.data import DataLoader, default_collate

from rayburst.train.engines import Part
from rayburst.train.order import Ints, Order, seed_of

__all__ = ["Feed", "Samples", "seed_everything"]

AHEAD = 4
_Key = tuple[int, int]  # epoch, index


@runtime_checkable
class Samples(Protocol):
    """Whole batches as a function of position alone. `batch` is called from another thread."""

    def __len__(self) -> int: ...

    def batch(self, epochs: Ints, indices: Ints) -> Any:
        """The samples with these indices, each in its epoch, as one batch."""


def seed_everything(seed: int) -> None:
    """Seed Python's, numpy's and torch's global generators with 32 bits."""
    random.seed(seed)
    np.random.seed(seed)
    # as torch.manual_seed, whose way through the compiler's wrapper takes milliseconds
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available():
        torch.cuda.manual_seed(seed)


class Feed:
    """`take` gives the batch of a part; what follows is fetched meanwhile, as `upcoming` says."""

    def __init__(
        self,
        dataset: Any,
        order: Order,
        *,
        upcoming: Callable[[int], Iterator[Part]],
        workers: int = 0,
        collate: Callable[[list[Any]], Any] | None = None,
        pin: bool = False,
    ) -> None:
        self._dataset, self._order, self._upcoming = dataset, order, upcoming
        self._workers, self._pin = workers, pin
        self._is_samples = isinstance(dataset, Samples)
        self._collate = _only if self._is_samples else (collate or default_collate)
        self._coming: Iterator[range] = iter(())
        self._batches: Iterator[Any] = iter(())
        self._ahead: _Ahead | None = None

    def begin(self, position: int) -> None:
        """Start fetching from the global batch at `position`, and forget what was fetched."""
        self.close()
        loader = DataLoader(
            _Seeded(self._dataset, self._order.seed, whole=self._is_samples),
            batch_sampler=_Keys(lambda: self._positions(position), self._order),
            num_workers=self._workers,
            collate_fn=self._collate,
            pin_memory=self._pin,
        )
        self._coming = self._positions(position)
        self._batches = iter(loader)
        if self._is_samples and not self._workers:
            self._ahead = _Ahead(self._batches)
            self._batches = iter(self._ahead)

    def take(self, part: Part) -> Any:
        """The batch of `part`; the parts must come in the order of `upcoming`."""
        if next(self._coming, None) != part.positions:
            raise ValueError(f"{part.positions} was asked for out of turn: call begin() first")
        return next(self._batches)

    def close(self) -> None:
        """Stop fetching."""
        if self._ahead is not None:
            self._ahead.stop()
        self._ahead, self._batches = None, iter(())

    def _positions(self, position: int) -> Iterator[range]:
        return (part.positions for part in self._upcoming(position))


class _Keys:
    """What DataLoader's workers fetch, batch by batch."""

    def __init__(self, positions: Callable[[], Iterator[range]], order: Order) -> None:
        self._positions, self._order = positions, order

    def __iter__(self) -> Iterator[list[_Key]]:
        for part in self._positions():
            epochs, indices = self._order.indices(part)
            yield list(zip(epochs.tolist(), indices.tolist(), strict=True))


class _Seeded(torch.utils.data.Dataset[Any]):
    """The user's dataset, each sample with random numbers of its own."""

    def __init__(self, dataset: Any, seed: int, *, whole: bool) -> None:
        self._dataset, self._seed, self._whole = dataset, seed, whole

    def __getitems__(self, keys: Sequence[_Key]) -> list[Any]:
        if self._whole:
            epochs, indices = np.array(keys, dtype=np.int64).T
            return [self._dataset.batch(epochs, indices)]
        return [self._one(epoch, index) for epoch, index in keys]

    def __getitem__(self, key: _Key) -> Any:
        return self._one(*key)

    def _one(self, epoch: int, index: int) -> Any:
        seed_everything(seed_of(self._seed, epoch, index))
        return self._dataset[index]


def _only(batches: list[Any]) -> Any:
    return batches[0]


class _Ahead:
    """Runs an iterator in a thread, up to AHEAD items before they are asked for."""

    def __init__(self, source: Iterable[Any]) -> None:
        self._source = source
        self._items: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(AHEAD)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="feed", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Any]:
        while True:
            item, error = self._items.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item

    def stop(self) -> None:
        self._stopped.set()
        while not self._items.empty():
            self._items.get_nowait()
        self._thread.join(10)

    def _run(self) -> None:
        source = iter(self._source)
        while not self._stopped.is_set():
            try:
                item, error = next(source), None
            except Exception as raised:  # noqa: BLE001 - it is raised where the batch is taken
                item, error = None, raised
            self._put((item, error))
            if error is not None:
                return

    def _put(self, item: tuple[Any, BaseException | None]) -> None:
        while not self._stopped.is_set():
            try:
                self._items.put(item, timeout=0.1)
                return
            except queue.Full:
                continue
