"""Bytes between hosts and the object store: whose they were, and what they cost. Pure.

    for moved in read_moved(records, run, lives, owner): ...
    entries = moved_entries(story.moved, period)

Run logs tell each second how many bytes a rank's process sent and received (`traffic`); where the
rank sat says which pool's price they have. Reading and writing have prices of their own: a cloud
takes bytes in for nothing and charges for what leaves it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any

from rayburst.cost.entries import NANO, Entry, Line, Owner
from rayburst.report.history import Interval, NodeLife, Run, Tenure, ms

READ, WRITTEN = "bytes read", "bytes written"
_GB = 10**9


@dataclass(frozen=True, kw_only=True, slots=True)
class Moved:
    """What one host moved for one owner in about a second."""

    t_ms: int
    life: NodeLife
    owner: Owner
    read_bytes: int
    written_bytes: int


def read_moved(
    records: Iterable[Mapping[str, Any]], run: Run, lives: Sequence[NodeLife], owner: Owner
) -> Iterator[Moved]:
    """The traffic in a run's log. Of hosts that the fleet does not know nothing is told."""
    by_rank: dict[int, list[Tenure]] = defaultdict(list)
    for tenure in run.tenures:
        by_rank[tenure.rank].append(tenure)
    by_node: dict[str, list[NodeLife]] = defaultdict(list)
    for life in lives:
        by_node[life.node].append(life)
    for record in records:
        if record["kind"] != "traffic":
            continue
        at = ms(record["t"])
        sat = by_rank.get(record["rank"], [])
        place = bisect_right([tenure.start_ms for tenure in sat], at) - 1
        stays = by_node.get(sat[max(place, 0)].host, []) if sat else []
        stay = bisect_right([life.requested_ms for life in stays], at) - 1
        if stay >= 0:
            yield Moved(
                t_ms=at,
                life=stays[stay],
                owner=owner,
                read_bytes=int(record["received_bytes"]),
                written_bytes=int(record["sent_bytes"]),
            )


def moved_entries(moved: Iterable[Moved], period: Interval) -> Iterator[Entry]:
    """The lines of one period, one of each direction; several of a host are to be added up."""
    for one in moved:
        if not period[0] <= one.t_ms < period[1]:
            continue
        both = (
            (READ, one.read_bytes, one.life.read_usd_per_gb),
            (WRITTEN, one.written_bytes, one.life.write_usd_per_gb),
        )
        for unit, size, usd_per_gb in both:
            if size:
                line = Line(
                    start_ms=period[0],
                    end_ms=period[1],
                    node=one.life.node,
                    pool=one.life.pool,
                    market=one.life.market,
                    owner=one.owner,
                    purpose="transfer",
                    unit=unit,
                )
                yield Entry(line=line, quantity=size, nano_usd=_nano(size, usd_per_gb))


def _nano(size_bytes: int, usd_per_gb: float | None) -> int | None:
    if usd_per_gb is None:
        return None
    return round(Fraction(Decimal(str(usd_per_gb))) * size_bytes * NANO / _GB)
