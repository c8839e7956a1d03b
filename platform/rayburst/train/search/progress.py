"""What the driver of a search knows, and what it says of it.

    progress = Progress(what, journal, say=print)
    progress.left()                                         # the trials to run, in their order
    is_over = progress.hear(3, {"step": 100, "value": 3.2})   # is trial 3 to stop?

Knows no Ray: whoever runs the trials calls it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rayburst.train.search.journal import Journal
from rayburst.train.search.rungs import Standing
from rayburst.train.search.settings import Search

__all__ = ["FAILED", "Progress", "Say"]

Say = Callable[[str], None]
FAILED = "failed"
"""In what a trial tells: its training function raised this."""


class Progress:
    """See the module's head. `failure`: what a training function raised; "" while none has."""

    def __init__(self, what: Search, journal: Journal, say: Say) -> None:
        self.what, self._journal, self._say = what, journal, say
        self._values = journal.values()
        self._standings = self._now()
        self.failure = ""

    def _now(self) -> list[Standing]:
        return self.what.rungs.standings(self._values, trials=self.what.trials)

    def left(self) -> list[int]:
        """Trials that have something left to do, if only their last checkpoint, in their order."""
        ended = self._journal.ended()
        return [
            number
            for number, standing in enumerate(self._standings)
            if standing.state != "stopped" and number not in ended
        ]

    def hear(self, trial: int, result: Mapping[str, Any]) -> bool:
        """Take up what a trial says; whether it is to stop."""
        if FAILED in result:
            self.failure = f"trial {trial} raised\n{result[FAILED]}"
            return True
        if "value" in result:
            self._values.setdefault(trial, {})[int(result["step"])] = float(result["value"])
            before, self._standings = self._standings, self._now()
            for number, (old, new) in enumerate(zip(before, self._standings, strict=True)):
                if old != new:
                    self._tell(number, new)
        return bool(self.failure) or self._standings[trial].state == "stopped"

    def _tell(self, trial: int, now: Standing) -> None:
        value = self._values[trial].get(now.rung)
        words = {"open": "goes on", "stopped": "is stopped", "done": "is done"}[now.state]
        self._say(f"trial {trial} {words} at step {now.rung} with {value:.4g}")
