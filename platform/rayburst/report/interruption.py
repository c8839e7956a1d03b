"""One interruption, as report.json tells it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rayburst.report import numbers
from rayburst.report.history import ms


@dataclass(frozen=True, kw_only=True, slots=True)
class Interruption:
    """One interruption as the report tells it; None where it does not say."""

    kind: str
    node: str
    at_ms: int | None
    notice_s: float | None
    gap_s: float | None
    steps_lost: float | None

    @property
    def words(self) -> str:
        """What was done to the node: "notice 30 s" or "power cut"."""
        if self.kind == "cut":
            return "power cut"
        return numbers.notice(self.notice_s)


def read_interruption(raw: Mapping[str, Any]) -> Interruption:
    """Reads one entry of `interruptions`; a missing key stays unknown."""
    at = raw.get("t")
    return Interruption(
        kind=str(raw.get("kind", "")),
        node=str(raw.get("node", "")),
        at_ms=None if at is None else ms(at),
        notice_s=raw.get("notice_s"),
        gap_s=raw.get("gap_s"),
        steps_lost=raw.get("steps_lost"),
    )
