"""Recorded membership of spot clusters as count traces: Bamboo's events, Parcae's counts.

`ms,add|remove,nodeK` lists when a node came or went; `time_s,nodes` gives the count at times. Both
become a `ZoneTrace` of the number of nodes at each tick.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from rayburst.errors import DataError
from rayburst.fleet.replay.traces import ZoneTrace

TICK_S = 60.0


def read_membership(path: Path, tick_s: float = TICK_S) -> ZoneTrace:
    """Read one CSV of either kind, sampled every `tick_s` seconds.

    Raises:
        DataError: the file is neither.
    """
    try:
        with path.open(newline="") as file:
            rows = [row for row in csv.reader(file) if row]
        times_s, counts = _counts(rows) if rows[0] == ["time_s", "nodes"] else _events(rows)
    except (OSError, ValueError, IndexError) as error:
        raise DataError(
            f"{path} is no membership ({error}); expected rows `ms,add|remove,node` or a header "
            "`time_s,nodes` with rows below"
        ) from error
    at = np.arange(0.0, times_s[-1] + tick_s / 2, tick_s)
    index = np.searchsorted(times_s, at, side="right") - 1
    return ZoneTrace(
        trace_set=path.parent.name,
        name=path.stem,
        tick_s=tick_s,
        count=np.array(counts, np.int64)[index],
    )


def _counts(rows: list[list[str]]) -> tuple[list[float], list[int]]:
    return [float(r[0]) for r in rows[1:]], [int(r[1]) for r in rows[1:]]


def _events(rows: list[list[str]]) -> tuple[list[float], list[int]]:
    """Nodes that are there after each event; events at one time count together."""
    there: set[str] = set()
    counts: dict[float, int] = {}
    for time_ms, what, node in rows:
        if what not in ("add", "remove"):
            raise ValueError(f"event {what!r}, expected add or remove")
        (there.add if what == "add" else there.discard)(node)
        counts[float(time_ms) / 1000.0] = len(there)
    times_s = sorted(counts)
    return times_s, [counts[t] for t in times_s]
