"""How every rank learns that the group must leave, and leaves after the same step.

    watcher = NoticeWatcher(source, clock=time.time); watcher.start()
    agreement = Agreement(watcher, margin_s=8.0, clock=time.time)
    for step in ...:
        agreement.begin(wants_checkpoint=is_due)      # starts an all-reduce of four floats
        ...                                           # forward, backward, optimizer
        verdict = agreement.end()                     # same answer on every rank
        if verdict.checkpoint or verdict.leave: ...   # save
        if verdict.leave: losses.leave(...)

A thread on each rank asks `source` for notices that concern its own node. What it found travels
with the step: an asynchronous all-reduce (MAX) that overlaps with the forward pass, so no barrier
of its own. A node with a deadline is used until `margin_s` before it; the margin must cover one
step, one checkpoint and the poll. A notice without a deadline means now.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist

__all__ = ["Agreement", "Notice", "NoticeWatcher", "Verdict"]

POLL_INTERVAL_S = 0.5
DEFAULT_MARGIN_S = 8.0
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Notice:
    """This rank must be gone by `deadline_s` (unix time); None: as soon as possible."""

    deadline_s: float | None
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What all ranks do after this step. `change`: meet, and go on with other members.

    `stopped_s`: the longest that any rank has told `begin`.
    """

    leave: bool
    checkpoint: bool
    change: bool = False
    stopped_s: float = 0.0


class NoticeWatcher:
    """Polls `source` in a daemon thread; `latest` is what it last said."""

    def __init__(
        self, source: Callable[[], Notice | None], *, interval_s: float = POLL_INTERVAL_S
    ) -> None:
        self.latest: Notice | None = None
        self._source = source
        self._interval_s = interval_s
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="notices", daemon=True)

    def start(self) -> NoticeWatcher:
        """Begin to poll."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()

    def poll(self) -> None:
        """Ask once. A source that fails is asked again later: notices outlive a busy head."""
        try:
            self.latest = self._source()
        except (RuntimeError, OSError) as error:
            _logger.warning("notices cannot be read at the moment: %s", error)

    def _run(self) -> None:
        while not self._stopped.wait(self._interval_s):
            self.poll()


class Agreement:
    """Turns what single ranks know into one verdict a step for all of them.

    `poll_every_steps` is for a source that all ranks must ask together: it is asked by `begin`, in
    place of the watcher's thread. `changes` says whether the group is to be rebuilt in place.
    """

    def __init__(
        self,
        watcher: NoticeWatcher,
        *,
        clock: Callable[[], float],
        margin_s: float = DEFAULT_MARGIN_S,
        poll_every_steps: int | None = None,
        changes: Callable[[], bool] = lambda: False,
    ) -> None:
        self._watcher = watcher
        self._changes = changes
        self._clock = clock
        self._margin_s = margin_s
        self._poll_every_steps = poll_every_steps
        self._steps = 0
        self._flags = torch.zeros(4)
        self._work: dist.Work | None = None

    @property
    def reason(self) -> str:
        """Why this rank leaves: its own notice, or that of a peer."""
        notice = self._watcher.latest
        return notice.reason if notice else "a peer has to go"

    def begin(self, *, wants_checkpoint: bool, stopped_s: float = 0.0) -> None:
        """Start the exchange; every rank calls it at the same point of the step.

        `stopped_s`: how long the group's last change stopped this rank, as it saw it.
        """
        self._steps += 1
        if self._poll_every_steps and self._steps % self._poll_every_steps == 0:
            self._watcher.poll()
        self._flags[0] = float(self._must_leave())
        self._flags[1] = float(wants_checkpoint)
        self._flags[2] = float(self._changes())
        self._flags[3] = stopped_s
        if dist.is_initialized() and dist.get_world_size() > 1:
            self._work = dist.all_reduce(self._flags, op=dist.ReduceOp.MAX, async_op=True)

    def end(self) -> Verdict:
        """The verdict of the exchange that `begin` started."""
        if self._work is not None:
            self._work.wait()
            self._work = None
        leave, checkpoint, change, stopped_s = self._flags.tolist()
        return Verdict(
            leave=leave > 0, checkpoint=checkpoint > 0, change=change > 0, stopped_s=stopped_s
        )

    def reset(self) -> None:
        """Drop an exchange that broke with its group."""
        self._flags = torch.zeros(4)
        self._work = None

    def _must_leave(self) -> bool:
        notice = self._watcher.latest
        if notice is None:
            return False
        if notice.deadline_s is None:
            return True
        return self._clock() >= notice.deadline_s - self._margin_s
