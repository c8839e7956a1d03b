"""The controller's decisions on growth, in the run log beside what the ranks write."""

from __future__ import annotations

import logging
import time

from rayburst.checkpoint.store import ObjectStore
from rayburst.errors import StoreError
from rayburst.train.resizing import Growth
from rayburst.train.runlog import RunLog

__all__ = ["GrowthLog"]

_NO_RANK = -1
_logger = logging.getLogger(__name__)


class GrowthLog:
    """Writes a decision when it is another one than the last. `folder`: the run's, or None."""

    def __init__(self, folder: str | None = None) -> None:
        self._folder = folder
        self._log: RunLog | None = None
        self._last: tuple[int, int, bool] | None = None

    def tell(self, found: Growth) -> None:
        """Cheap; the store is asked in a thread of the log."""
        key = found.size, found.possible, found.pays
        if found.possible <= found.size or key == self._last:
            return
        self._last = key
        log = self._opened()
        if log is not None:
            log.write("growth", **found.to_json())

    def _opened(self) -> RunLog | None:
        if self._log is None and self._folder is not None:
            try:
                folder = ObjectStore.open(self._folder)
            except StoreError as error:
                _logger.warning("decisions on growth are not logged: %s", error)
                self._folder = None
                return None
            self._log = RunLog(folder, rank=_NO_RANK, world=0, clock=time.time)
        return self._log
