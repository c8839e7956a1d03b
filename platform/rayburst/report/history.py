"""What happened, as intervals: the lives of nodes, the tenures of workers, changeovers.

Pure: reads node events and the run log as they stand in the object store and returns
intervals in whole milliseconds since the epoch, so that sums over them are exact. It draws
nothing and knows no prices.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

BEGINS = ("start", "change")
"""Kinds of record with which a rank takes its place: its process is new, or its group was rebuilt
around it."""
Event = Mapping[str, Any]
Interval = tuple[int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeLife:
    """One stay of a node in the fleet; a host that returns gets a new one."""

    node: str
    pool: str
    market: str
    price_usd_per_hour: float | None
    requested_ms: int
    up_ms: int | None = None
    noticed_ms: int | None = None
    draining_ms: int | None = None
    gone_ms: int | None = None
    why_gone: str = ""
    read_usd_per_gb: float | None = None
    write_usd_per_gb: float | None = None
    """Of what it reads from the object store and writes to it."""

    def end_ms(self, horizon_ms: int) -> int:
        """When it went, or the horizon while it is still there."""
        return max(self.requested_ms, horizon_ms if self.gone_ms is None else self.gone_ms)


@dataclass(frozen=True, kw_only=True, slots=True)
class Tenure:
    """The time in which one rank's worker sat on one host."""

    rank: int
    host: str
    world: int
    start_ms: int
    end_ms: int
    stayed: bool = False
    """Its process was in the group before, perhaps at another rank: the group changed in place."""
    began_ms: int | None = None
    """When its process began to get ready; None where that is not told."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One optimiser step of one rank. `redone`: its result was lost and computed again."""

    rank: int
    host: str
    world: int
    step: int
    loss: float | None
    start_ms: int
    end_ms: int
    redone: bool
    wait_ms: int = 0
    """Of it, waiting for data."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A training run as intervals.

    `windows`: from the first start to the end, again for each submission after one that ended; the
    last one, and one that nobody ended, runs to the last record.
    """

    windows: Sequence[Interval]
    tenures: Sequence[Tenure]
    steps: Sequence[Step]
    changeovers: Sequence[Interval]

    @property
    def window(self) -> Interval | None:
        """From the first start to the end of all; None for a run that never started."""
        return (self.windows[0][0], self.windows[-1][1]) if self.windows else None

    @property
    def between(self) -> list[Interval]:
        """Where one submission had ended and the next one had not begun."""
        return _between(self.windows)


@dataclass(frozen=True, kw_only=True, slots=True)
class Era:
    """A stretch of training at one world size, without a changeover in it."""

    world: int
    start_ms: int
    end_ms: int


def ms(t: float) -> int:
    """Unix seconds to whole milliseconds."""
    return round(t * 1000)


def merged(intervals: Iterable[Interval]) -> list[Interval]:
    """The union of intervals, sorted and disjoint; empty ones are dropped."""
    result: list[Interval] = []
    for start, end in sorted(i for i in intervals if i[1] > i[0]):
        if result and start <= result[-1][1]:
            result[-1] = (result[-1][0], max(result[-1][1], end))
        else:
            result.append((start, end))
    return result


def node_lives(events: Sequence[Event]) -> list[NodeLife]:
    """The stays of all nodes, in the order in which they were requested.

    Events about a node nobody requested (a host adopted, a log cut short) open a life at
    the first event seen. Anything after `gone` opens the next life.
    """
    lives: list[NodeLife] = []
    current: dict[str, int] = {}
    for event in sorted(events, key=lambda e: e["t"]):
        node, at = str(event["node"]), ms(event["t"])
        index = current.get(node)
        if index is None or (lives[index].gone_ms is not None and event["kind"] != "gone"):
            index = current[node] = len(lives)
            lives.append(_born(event, at))
        lives[index] = _lived(lives[index], event, at)
    return lives


def _born(event: Event, at: int) -> NodeLife:
    price = event.get("price_usd_per_hour")
    read, write = event.get("read_usd_per_gb"), event.get("write_usd_per_gb")
    return NodeLife(
        node=str(event["node"]),
        pool=str(event.get("pool", "")),
        market=str(event.get("market", "")),
        price_usd_per_hour=None if price is None else float(price),
        read_usd_per_gb=None if read is None else float(read),
        write_usd_per_gb=None if write is None else float(write),
        requested_ms=at,
    )


def _lived(life: NodeLife, event: Event, at: int) -> NodeLife:
    kind = event["kind"]
    if kind == "up" and life.up_ms is None:
        return replace(life, up_ms=at)
    if kind == "notice" and life.noticed_ms is None:
        return replace(life, noticed_ms=at)
    if kind == "draining" and life.draining_ms is None:
        return replace(life, draining_ms=at)
    if kind == "gone" and life.gone_ms is None:
        return replace(life, gone_ms=at, why_gone=str(event.get("why", "")))
    return life


def read_run(log: Sequence[Event]) -> Run:
    """The run log as intervals; an empty log gives an empty run."""
    records = sorted(log, key=lambda r: r["t"])
    starts = [r for r in records if r["kind"] in BEGINS]
    if not starts:
        return Run(windows=(), tenures=(), steps=(), changeovers=())
    windows = _windows(records)
    steps = _steps(records, starts)
    return Run(
        windows=windows,
        tenures=_tenures(records, windows),
        steps=steps,
        changeovers=_changeovers(steps, starts, windows),
    )


def _windows(records: Sequence[Event]) -> list[Interval]:
    """From a start to the last end before the next start; each rank tells of its end."""
    windows: list[Interval] = []
    begun: int | None = None
    ended: int | None = None
    for record in records:
        if record["kind"] == "end":
            ended = ms(record["t"])
        elif record["kind"] == "start" and begun is not None and ended is not None:
            windows.append((begun, ended))
            begun, ended = ms(record["t"]), None
        elif record["kind"] in BEGINS and begun is None:
            begun = ms(record["t"])
    last = ms(records[-1]["t"]) if ended is None else ended
    return windows if begun is None else [*windows, (begun, last)]


def _between(windows: Sequence[Interval]) -> list[Interval]:
    return [(one[1], other[0]) for one, other in pairwise(windows)]


def _tenures(records: Sequence[Event], windows: Sequence[Interval]) -> list[Tenure]:
    """A worker sits on its host until its rank is given anew, leaves, or is no more."""
    ended = {begun: ended for ended, begun in _between(windows)}
    done: list[Tenure] = []
    open_: dict[int, Tenure] = {}

    def close(rank: int, at: int) -> None:
        tenure = open_.pop(rank, None)
        if tenure is not None:
            done.append(replace(tenure, end_ms=max(at, tenure.start_ms)))

    for record in records:
        at = ms(record["t"])
        if record["kind"] in BEGINS:
            if at in ended:
                over = ended.pop(at)
                for rank in list(open_):
                    close(rank, over)
            for rank in [r for r in open_ if r == record["rank"] or r >= record["world"]]:
                close(rank, at)
            open_[record["rank"]] = Tenure(
                rank=record["rank"],
                host=str(record["host"]),
                world=record["world"],
                start_ms=at,
                end_ms=at,
                stayed=record["kind"] == "change",
                began_ms=ms(record["began"]) if "began" in record else None,
            )
        elif record["kind"] == "leave" or _departs(record, open_):
            close(record["rank"], at)
    for rank in list(open_):
        close(rank, windows[-1][1])
    return sorted(done, key=lambda t: (t.start_ms, t.rank))


def _departs(record: Event, open_: Mapping[int, Tenure]) -> bool:
    """Whether the worker that departs still has its rank; else another one was faster to take it.

    It tells its old rank, in the group as it was.
    """
    if record["kind"] != "depart" or record["rank"] not in open_:
        return False
    tenure = open_[record["rank"]]
    return bool(tenure.world == record["world"] and record.get("host", tenure.host) == tenure.host)


def _steps(records: Sequence[Event], starts: Sequence[Event]) -> list[Step]:
    last_seen = {r["step"]: r["t"] for r in records if r["kind"] == "step"}
    worker: dict[int, Event] = {}
    steps: list[Step] = []
    for record in records:
        if record["kind"] in BEGINS:
            worker[record["rank"]] = record
        if record["kind"] != "step" or record["rank"] not in worker:
            continue
        at, again = record["t"], last_seen[record["step"]]
        mine = worker[record["rank"]]
        loss = record.get("loss")
        steps.append(
            Step(
                rank=record["rank"],
                host=str(mine["host"]),
                world=record["world"],
                step=record["step"],
                loss=None if loss is None else float(loss),
                # the two clocks of a worker differ by less than a step
                start_ms=max(ms(at - record["duration_s"]), ms(mine["t"])),
                end_ms=ms(at),
                # Computed again only if some worker started in between.
                redone=any(at < s["t"] <= again for s in starts),
                wait_ms=ms(record.get("wait_s") or 0.0),
            )
        )
    return steps


def _changeovers(
    steps: Sequence[Step], starts: Sequence[Event], windows: Sequence[Interval]
) -> list[Interval]:
    """The stretches without any step in which a worker started: (from, to) each.

    A worker that joins while the others go on stepping costs nothing and gives none. Between two
    submissions nothing stands still.
    """
    busy = merged([*((s.start_ms, s.end_ms) for s in steps), *_between(windows)])
    edges = [windows[0][0], *(edge for interval in busy for edge in interval), windows[-1][1]]
    gaps = zip(edges[::2], edges[1::2], strict=True)
    started = [ms(s["t"]) for s in starts]
    return [gap for gap in gaps if gap[1] > gap[0] and any(gap[0] <= s <= gap[1] for s in started)]


def eras(run: Run) -> list[Era]:
    """The stretches of training, in order."""
    result: list[Era] = []
    for step in sorted(run.steps, key=lambda s: s.start_ms):
        last = result[-1] if result else None
        joined = last is not None and not any(
            last.end_ms <= start < step.end_ms for start, _ in run.changeovers
        )
        if last is not None and joined and last.world == step.world:
            result[-1] = Era(
                world=last.world, start_ms=last.start_ms, end_ms=max(last.end_ms, step.end_ms)
            )
        else:
            result.append(Era(world=step.world, start_ms=step.start_ms, end_ms=step.end_ms))
    return result
