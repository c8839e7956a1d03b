"""Steps whose gradient is not a number: every rank sees it, none steps with it. Never silently."""

from __future__ import annotations

import logging
from typing import Literal

from rayburst.errors import NonFiniteError
from rayburst.train.runlog import RunLog

__all__ = ["LeftOut"]

_IN_A_ROW = 10
_logger = logging.getLogger(__name__)


class LeftOut:
    """`policy` is RunOptions.on_nonfinite: stop at once, or leave such steps out, ten in a row."""

    def __init__(self, policy: Literal["stop", "skip"], log: RunLog) -> None:
        self._policy, self._log = policy, log
        self._in_a_row = 0

    def end(self) -> None:
        """A step was good."""
        self._in_a_row = 0

    def add(self, step: int, batch: range, loss: float, *, warns: bool) -> None:
        """The step after `step`, over the samples `batch`, is left out. NonFiniteError to stop.

        Every rank calls it, and one of them `warns`.
        """
        self._in_a_row += 1
        what = (
            f"step {step + 1} (samples {batch.start} to {batch.stop - 1} of the run) has a "
            f"gradient that is not finite; loss {loss}"
        )
        self._log.write("nonfinite", step=step + 1, loss=str(loss))
        if self._policy == "stop" or self._in_a_row > _IN_A_ROW:
            self._log.flush()
        if self._policy == "stop":
            raise NonFiniteError(
                f"{what}. The weights are those of step {step}. Lower the learning rate, clip "
                "(run.prepare(..., clip_norm=1.0)), or leave such steps out with "
                "RunOptions(on_nonfinite='skip')"
            )
        if self._in_a_row > _IN_A_ROW:
            raise NonFiniteError(f"{what}, and so had the {_IN_A_ROW} steps before it")
        if warns:
            _logger.warning("%s: left out", what)
