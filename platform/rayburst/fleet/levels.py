"""How long a spot pool goes on to have so many hosts, counted level by level. Pure: numpy only.

    record = LevelRecord(first_s=2000.0)
    record.observe(now_s=0.0, hosts=16, short=False)
    record.observe(now_s=600.0, hosts=12, short=True)     # four were taken, and it gives no more
    record.lasts_s()                                      # seconds, for 1, 2, ... hosts

A gang that runs on 12 of 16 hosts starts again when the pool has fewer than 12, not when a
thirteenth comes. So each level keeps the time that the pool had so many, and how often it fell
below. A pool that gives less than is asked of it (it is short) is another pool than one that
gives all, so the two are counted apart.

Knows no clock. It counts what a fleet can see: hosts that it has, and whether it was refused more.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


class LevelRecord:
    """One pool. Required: `observe` with times that only grow.

    Args:
        first_s: how long a level lasts as long as nothing was seen of it; weighs as one fall.
    """

    def __init__(self, first_s: float) -> None:
        self._first_s = first_s
        self._spent_s: npt.NDArray[np.float64] = np.zeros((2, 0))
        self._falls: npt.NDArray[np.float64] = np.zeros((2, 0))
        self._seen_s: float | None = None
        self._hosts = 0
        self._short = False
        self._told: tuple[float, ...] | None = None

    def observe(self, now_s: float, hosts: int, *, short: bool, lost: bool = True) -> None:
        """Take one reading: `lost` says whether hosts that are gone since the last were taken."""
        if hosts > self._falls.shape[1]:
            more = ((0, 0), (0, hosts - self._falls.shape[1]))
            self._spent_s, self._falls = np.pad(self._spent_s, more), np.pad(self._falls, more)
        if self._seen_s is not None and self._hosts:
            self._spent_s[int(self._short), : self._hosts] += now_s - self._seen_s
            if lost and hosts < self._hosts:
                self._falls[int(self._short), hosts : self._hosts] += 1
        self._seen_s, self._hosts, self._short, self._told = now_s, hosts, short, None

    def lasts_s(self) -> tuple[float, ...]:
        """By number of hosts, from one up: how long the pool, as it is now, keeps so many."""
        if self._told is None:
            row = int(self._short)
            found = (self._first_s + self._spent_s[row]) / (1.0 + self._falls[row])
            self._told = tuple(found.tolist())
        return self._told
