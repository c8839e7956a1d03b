"""Compares a candidate with production on what was asked, when the replica has nothing else to do.

    pairs = Pairs(lineup, compare, report, is_idle=lambda: True)
    pairs.start()
    pairs.offer(text)               # after its answer is sent; dropped when too many wait
    pairs.failed(trial)             # the candidate raised, and production answered

Both compute the same text one after the other, in turns as to who begins. A text that finds no idle
moment within a second is dropped: a comparison may not cost those that ask. Knows no Ray.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from rayburst.models.judge import Pair
from rayburst.models.trials import Trial
from rayburst.serve.lineup import Lineup

__all__ = ["Pairs", "Report"]

_log = logging.getLogger("ray.serve")
_WAITING, _PATIENCE_S, _LOOK_S, _REPORT_S = 64, 1.0, 0.002, 0.5
M = TypeVar("M")
Report = Callable[[Trial, str, list[Pair]], None]


@dataclass(slots=True)
class Pairs(Generic[M]):
    """`compare(production, candidate, text, candidate_first)` gives a pair, or raises.

    What it raises is the candidate's failure; None is a text that production cannot do.
    `report(trial, production, pairs)` hands them on; `name` gives production's name.
    """

    lineup: Lineup[M]
    compare: Callable[[M, M, bytes, bool], Pair | None]
    report: Report
    name: Callable[[M], str]
    is_idle: Callable[[], bool]
    taken: int = 0
    dropped: int = 0
    _texts: queue.Queue[tuple[float, bytes]] = field(
        default_factory=lambda: queue.Queue(maxsize=_WAITING)
    )
    _found: dict[int, tuple[Trial, str, list[Pair]]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _stop: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        """Begin, in a thread."""
        threading.Thread(target=self._run, name="pairs", daemon=True).start()

    def stop(self) -> None:
        """End after what is under way."""
        self._stop.set()

    def offer(self, text: bytes, answered: Trial | None) -> None:
        """What was asked and answered; `answered` where a candidate did. From any thread."""
        trial = self.lineup.trial
        if trial is None or not (trial.shadow or answered is not None):
            return
        try:
            self._texts.put_nowait((time.monotonic(), text))
        except queue.Full:
            self.dropped += 1

    def failed(self, trial: Trial) -> None:
        """The candidate raised where it should have answered."""
        self._keep(trial, self.name(self.lineup.production), Pair(failed=True))

    def _run(self) -> None:
        reported_s = time.monotonic()
        while not self._stop.is_set():
            try:
                came_s, text = self._texts.get(timeout=_REPORT_S)
                if self._waits_until_idle(came_s + _PATIENCE_S):
                    self._compute(text)
                else:
                    self.dropped += 1
            except queue.Empty:
                pass
            if time.monotonic() - reported_s >= _REPORT_S:
                reported_s = time.monotonic()
                self._hand_on()

    def _waits_until_idle(self, until_s: float) -> bool:
        while not self.is_idle():
            if time.monotonic() > until_s or self._stop.wait(_LOOK_S):
                return False
        return True

    def _compute(self, text: bytes) -> None:
        with self.lineup.both() as both:
            if both is None:
                return
            try:
                pair = self.compare(both.production, both.candidate, text, self.taken % 2 == 1)
            except Exception as error:  # noqa: BLE001  # models raise what they like
                _log.warning("trial %d: the candidate failed: %r", both.trial.number, error)
                pair = Pair(failed=True)
            if pair is not None:
                self.taken += 1
                self._keep(both.trial, self.name(both.production), pair)

    def _keep(self, trial: Trial, production: str, pair: Pair) -> None:
        with self._lock:
            kept = self._found.get(trial.number)
            if kept is None or kept[1] != production:
                kept = self._found[trial.number] = (trial, production, [])
            kept[2].append(pair)

    def _hand_on(self) -> None:
        with self._lock:
            found, self._found = self._found, {}
        for trial, production, pairs in found.values():
            try:
                self.report(trial, production, pairs)
            except Exception as error:  # noqa: BLE001  # what one report lacks the next ones bring
                _log.warning("trial %d: %d pairs are lost: %r", trial.number, len(pairs), error)
