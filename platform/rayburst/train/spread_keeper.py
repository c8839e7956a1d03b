"""The checkpoints of a spread model whose group is rebuilt in place: all ranks save together.

No rank has the whole state, so a piece that is lost with its rank comes from the newest checkpoint.
The groups that a save needs are made anew with each group of the run; what was under way in the old
ones is given up. The first save is at once: a model without one could only begin again.
"""

from __future__ import annotations

from typing import Any

from rayburst.train.keeper import Keeper

__all__ = ["SpreadKeeper"]

_GIVE_UP_S = 5.0


class SpreadKeeper(Keeper):
    """`regroup` before `load` and `save`, whenever the members have changed."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._saved_s = float("-inf")

    def regroup(self) -> None:
        """Collective."""
        self._checkpoints.wait(_GIVE_UP_S)  # its group is broken, so it ends soon
        self._pending = self._last = None
        self._checkpoints = self._checkpointer()
