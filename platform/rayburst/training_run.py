"""A training run of a fleet's store: its log, and its page."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rayburst.report.run_page import RunStory
    from rayburst.sdk import Platform


class TrainingRun:
    """A training run, whatever jobs and submissions it took."""

    def __init__(self, name: str, platform: Platform) -> None:
        self.name = name
        self._platform = platform

    def log(self) -> list[dict[str, Any]]:
        """All records of its run log, by time."""
        from rayburst.train import runlog

        return runlog.read(self._platform.store(), self.name)

    def report(self) -> RunStory:
        """The run in one page: nodes by market, interruptions, goodput, loss, dollars.

        A page (`html()`, `save(path)`; it shows itself in a notebook), a DataFrame (`frame()`, one
        row a step) and JSON (`to_dict()`).
        """
        from rayburst.report.run_page import tell_run

        return tell_run(
            self.name,
            self._platform.events(),
            self.log(),
            entries=self._platform.ledger(),
            spec=self._platform.spec(),
            now=time.time(),
        )

    def __repr__(self) -> str:
        return f"<run {self.name}>"
