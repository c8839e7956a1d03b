"""From a notice to Ray's drain: what the watcher on every node does.

A source says whether this machine was given notice. The watcher asks it, and turns the first
notice into Ray's drain with the notice's own deadline, so that Ray places nothing more here and
Ray Train learns of the loss before it happens. It does not decide what to do about the loss, and
it does not end the machine.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from rayburst.fleet.files import read_json
from rayburst.fleet.pools.base import Notice


class NoticeSource(Protocol):
    """Where notices of one machine appear: a metadata service, a file, an owner's calendar."""

    def poll(self) -> Notice | None:
        """The notice given to this machine, or None; never blocks for more than a second."""
        ...


class ProcessNoticeSource:
    """Notices of a process host: a file in its folder, written once by whoever takes the host."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "notice.json"

    def poll(self) -> Notice | None:
        record = read_json(self._file)
        return Notice(**record) if record else None


class Watcher:
    """Asks a source and drains the node once. Call `step` a few times a second.

    Args:
        source: where this machine's notices appear.
        drain: tells Ray; takes the notice, returns True when Ray accepted it. Tried again until
        then.
    """

    def __init__(self, source: NoticeSource, drain: Callable[[Notice], bool]) -> None:
        self._source = source
        self._drain = drain
        self._drained = False
        self.notice: Notice | None = None

    def step(self) -> Notice | None:
        """Look once; returns the notice in force."""
        if self.notice is None:
            self.notice = self._source.poll()
        if self.notice is not None and not self._drained:
            self._drained = self._drain(self.notice)
        return self.notice
