"""Which nodes were taken away, read from the event log. Pure.

A node that got notice was taken, whenever it went; one that was cut off says so in its last event.
A node that was given back, or never came up, was not.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rayburst.fleet.events import NodeEvent
from rayburst.report import numbers

POWER_CUT = "power cut"


@dataclass(frozen=True, kw_only=True, slots=True)
class Taken:
    """One interruption. `notice_s`: warning time, 0 without a deadline; None for a power cut."""

    t: float
    node: str
    pool: str
    market: str
    notice_s: float | None

    @property
    def words(self) -> str:
        """As a reader takes it in: "notice 30 s", "notice at once" or "power cut"."""
        return POWER_CUT if self.notice_s is None else numbers.notice(self.notice_s)


def taken_away(events: Iterable[NodeEvent]) -> list[Taken]:
    """Every interruption, oldest first."""
    known = list(events)
    warned = {event.node for event in known if event.kind == "notice"}
    return [
        Taken(
            t=event.t,
            node=event.node,
            pool=event.pool,
            market=event.market,
            notice_s=None if event.kind == "gone" else (event.deadline or event.t) - event.t,
        )
        for event in sorted(known, key=lambda e: e.t)
        if event.kind == "notice"
        or (event.kind == "gone" and event.node not in warned and POWER_CUT in event.why)
    ]
