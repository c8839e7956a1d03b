"""Recorded spot markets, read into series of "up or down". Formats: JSON files of one zone each.

    for trace in read_traces(Path("traces/windows")):
        trace.name, trace.tick_s, trace.up, trace.jobs

A path is a file, a folder of files (one zone each, one clock), or a folder of zone folders whose
files are windows cut from one recording. Windows that carry `start_time` are stitched back into the
recording, so that a job in one window can look back at what came before it. Count traces (how many
nodes were up) are read as counts; a zone is up where the count reaches `nodes`.

Knows no policy and no prices. An unread tick between windows stays unknown.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rayburst.errors import DataError

UNKNOWN = -1

Counts = npt.NDArray[np.int64]


class Polarity(StrEnum):
    """What a 1 in a file means. Auto: unavailable in windows (`start_time`), else available."""

    AUTO = "auto"
    AVAILABLE = "available"
    UNAVAILABLE = "unavailable"


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """Ticks [start, stop) in which one job may run."""

    start: int
    stop: int


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ZoneTrace:
    """One zone over time.

    Attributes:
        count: nodes up at each tick (0 or 1 for single traces), UNKNOWN where nothing was read.
        windows: spans cut by the recorder, in file order; empty for an uncut recording.
    """

    trace_set: str
    name: str
    tick_s: float
    count: Counts
    windows: tuple[Span, ...] = ()


def read_traces(path: Path, polarity: Polarity = Polarity.AUTO) -> list[ZoneTrace]:
    """Read a file, a folder of files or a folder of zone folders, sorted by zone name.

    Raises:
        DataError: nothing readable is there, or files contradict each other.
    """
    if path.is_file():
        return [_whole(path, path.parent.name, polarity)]
    if not path.is_dir():
        raise DataError(f"no traces at {path}; give a trace file or a folder of them")
    files = sorted(path.glob("*.json"))
    folders = sorted(d for d in path.iterdir() if d.is_dir() and any(d.glob("*.json")))
    if files and _is_window(files[0]):
        return [_stitched(path, path.parent.name, polarity)]
    if files:
        return [_whole(file, path.name, polarity) for file in files]
    if folders:
        return [_stitched(folder, path.name, polarity) for folder in folders]
    raise DataError(f"no *.json in {path} or in its folders; give a folder of traces")


def _whole(path: Path, trace_set: str, polarity: Polarity) -> ZoneTrace:
    tick_s, data, metadata = _load(path)
    if "start_time" in metadata:
        return _stitch([path], trace_set, path.stem, polarity)
    flipped = polarity is Polarity.UNAVAILABLE
    return ZoneTrace(
        trace_set=trace_set, name=path.stem, tick_s=tick_s, count=_flip(data, flipped, path)
    )


def _stitched(folder: Path, trace_set: str, polarity: Polarity) -> ZoneTrace:
    files = sorted(folder.glob("*.json"), key=lambda p: (len(p.stem), p.stem))
    if not _is_window(files[0]):
        raise DataError(
            f"{files[0]} has no start_time, so the files of {folder} cannot be put in order; "
            "give a folder of one file for each zone"
        )
    return _stitch(files, trace_set, folder.name, polarity)


def _stitch(files: Sequence[Path], trace_set: str, name: str, polarity: Polarity) -> ZoneTrace:
    """Windows of one recording, laid back to where they were cut."""
    flipped = polarity is not Polarity.AVAILABLE
    parts, ticks = [], set()
    for path in files:
        tick_s, data, metadata = _load(path)
        ticks.add(tick_s)
        try:
            start = int(metadata["start_time"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path} has no whole start_time in its metadata") from error
        parts.append((start, _flip(data, flipped, path), path))
    if len(ticks) != 1:
        raise DataError(f"windows of {name} have different gap_seconds: {sorted(ticks)}")
    first = min(start for start, _, _ in parts)
    count = np.full(max(start + len(d) for start, d, _ in parts) - first, UNKNOWN, np.int64)
    for start, data, path in parts:
        seen = count[start - first : start - first + len(data)]
        if np.any((seen != UNKNOWN) & (seen != data)):
            raise DataError(f"{path} contradicts another window of {name}; one of them is damaged")
        seen[:] = data
    spans = tuple(Span(start=s - first, stop=s - first + len(d)) for s, d, _ in parts)
    return ZoneTrace(trace_set=trace_set, name=name, tick_s=ticks.pop(), count=count, windows=spans)


def _flip(data: Counts, flipped: bool, path: Path) -> Counts:
    if not flipped:
        return data
    if np.any(data > 1):
        raise DataError(f"{path} holds counts above 1; polarity unavailable fits only 0 and 1")
    return 1 - data


def _is_window(path: Path) -> bool:
    return "start_time" in _load(path)[2]


def _load(path: Path) -> tuple[float, Counts, dict[str, Any]]:
    """Tick, data and metadata of one file, checked."""
    try:
        content = json.loads(path.read_text())
        metadata = dict(content["metadata"])
        tick_s = float(metadata["gap_seconds"])
        data = np.array(content["data"], dtype=np.int64)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is no trace ({error}); expected "
            '{"metadata": {"gap_seconds": G}, "data": [n0, n1, ...]}'
        ) from error
    if tick_s <= 0 or data.ndim != 1 or not len(data) or np.any(data < 0):
        raise DataError(f"{path}: gap_seconds must be above 0, data a list of counts from 0 up")
    return tick_s, data, metadata
