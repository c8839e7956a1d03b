"""The checkpoints of a spread model whose group is rebuilt in place: all ranks save together.

No rank has the whole state, so a piece that is lost with its rank comes from the newest checkpoint,
or from a snapshot in a peer's memory. Between checkpoints such snapshots are taken, at a pace of
their own: the store knows nothing of them. The groups that a save needs are made anew with each
group of the run; what was under way in the old ones is given up. The first save is at once: a model
without one could only begin again.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping
from statistics import median
from typing import Any

import torch
import torch.distributed as dist

from rayburst.checkpoint.checkpointer import Saved, SaveHandle
from rayburst.errors import CheckpointError, StoreError
from rayburst.train.keeper import FIRST_S, Keeper
from rayburst.train.pace import snapshot_interval_s

__all__ = ["SpreadKeeper"]

_GIVE_UP_S = 5.0
_REMEMBERED = 5
_logger = logging.getLogger(__name__)


class SpreadKeeper(Keeper):
    """`regroup` before `load` and `save`, whenever the members have changed."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._saved_s = float("-inf")
        self._snapshot: SaveHandle | None = None
        self._snapped_s = float("-inf")
        self._stands_s: deque[float] = deque(maxlen=_REMEMBERED)  # that training stood still
        self._takes_s: deque[float] = deque(maxlen=_REMEMBERED)  # until a snapshot is whole

    def regroup(self) -> None:
        """Collective."""
        self._checkpoints.wait(_GIVE_UP_S)  # its group is broken, so it ends soon
        self._pending = self._last = self._snapshot = None
        self._checkpoints = self._checkpointer()

    def wants(self) -> bool:
        if self._snapshot is not None and not self._snapshot.done():
            return False
        return super().wants() or self._wants_snapshot()

    def _wants_snapshot(self) -> bool:
        """Rank 0 decides; a checkpoint on its way to the store is one for the peer too."""
        is_busy = self._pending is not None and not self._pending.done()
        if self._where.rank != 0 or is_busy or self._peer is None or not self._peer.is_found:
            return False
        interval_s = 0.0
        if self._stands_s and self._takes_s:
            interval_s = snapshot_interval_s(
                blocked_s=median(self._stands_s), whole_s=median(self._takes_s)
            )
        return self._clock() - max(self._saved_s, self._snapped_s) >= interval_s

    def snapshots(self, state: Mapping[str, Any], *, step: int, **words: Any) -> bool:
        store_waits, has_peer = self._agreed()
        if not store_waits:
            return False
        if has_peer:
            self._take(state, step, **words)
        else:  # some rank has not found it yet
            self._meet_peer(state)
        return True

    def _agreed(self) -> tuple[bool, bool]:
        """Whether no checkpoint is due, by rank 0; and whether all ranks know the peer."""
        is_due = self._where.rank == 0 and super().wants()
        has_peer = self._peer is not None and self._peer.is_found
        flags = torch.tensor([not is_due, has_peer], dtype=torch.uint8)
        if self._where.world > 1:
            dist.all_reduce(flags, op=dist.ReduceOp.MIN)
        return bool(flags[0]), bool(flags[1])

    def _take(self, state: Mapping[str, Any], step: int, **words: Any) -> None:
        self.settle()
        self._snapshot, blocked_s = self._start_save(state, step, only_peer=True, **words)
        self._snapped_s = self._clock()
        self._stands_s.append(blocked_s)
        self._log.write("snapshot", step=step, blocked_s=blocked_s)

    def poll(self) -> None:
        super().poll()
        handle = self._snapshot
        if handle is None or not handle.done():
            return
        self._snapshot = None
        try:
            self._takes_s.append(handle.result().duration_s)
        except (StoreError, CheckpointError) as error:
            self._snapped_s = self._clock() + FIRST_S
            if self._where.rank == 0:
                _logger.warning("no snapshot of step %d at the peer: %s", handle.step, error)

    def settle(self) -> Saved | None:
        if self._snapshot is not None:
            self._checkpoints.wait()
            self.poll()
        return super().settle()
