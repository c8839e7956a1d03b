"""Machines that failed, kept out for a while: each failure in a row doubles it, up to an hour.

One file a machine in the fleet's folder, so that all who open the pool know, and a restart forgets
nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from rayburst.fleet.files import read_json, write_atomically

FIRST_S = 60.0
MOST_S = 3600.0


class Quarantine:
    """The machines of one pool that are kept out."""

    def __init__(self, folder: Path, *, clock: Callable[[], float]) -> None:
        self._folder = folder
        self._clock = clock

    def add(self, machine: str, why: str) -> float:
        """Keep it out from now; returns until when, unix seconds."""
        times = int((read_json(self._file(machine)) or {}).get("times", 0)) + 1
        until: float = self._clock() + min(MOST_S, FIRST_S * 2 ** (times - 1))
        told = {"until": until, "times": times, "why": why}
        write_atomically(self._file(machine), json.dumps(told))
        return until

    def why(self, machine: str) -> str:
        """Why it is kept out now; empty when it is not."""
        held = read_json(self._file(machine))
        if held is None or held["until"] <= self._clock():
            return ""
        return f"{held['why']}; left alone for {held['until'] - self._clock():.0f} s more"

    def clear(self, machine: str) -> None:
        """It works again: the next failure is a first one."""
        self._file(machine).unlink(missing_ok=True)

    def _file(self, machine: str) -> Path:
        return self._folder / f"{machine}.json"
