"""The planner's decisions, as events: what was decided, about whom, and why.

    log = DecisionLog(store, spool=fleet.spool)
    log.append(DecisionBatch(t=now, decisions=(...)))
    for decision in log.last(20): ...

A decision is written when it is new: the same one of the second before is not said again. Those
about a job carry what it was granted and which hosts it pays for, so that an agent that is started
again goes on with the same grants, and the ledger knows whose a host was.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from rayburst.checkpoint.store import ObjectStore
from rayburst.fleet.events import Journal

_PREFIX = "decisions/"


@dataclass(frozen=True, kw_only=True, slots=True)
class DecisionEvent:
    """One decision.

    Attributes:
        t: unix seconds.
        kind: an ActionKind, or `grant`, `pays` and `end` of a job. `pays`: its grant is as it was,
            but it pays for other hosts.
        subject: a pool, a host, a job's submission id, or whose budget it is about.
        hosts, pools, pays, spent_usd: of a job, with those three. `pays` are the hosts that it pays
            for from then on; `spent_usd` is for readers, the ledger does not use it.
    """

    t: float
    kind: str
    subject: str
    why: str
    count: int = 1
    tenant: str = ""
    hosts: tuple[str, ...] = ()
    pools: Mapping[str, int] = field(default_factory=dict)
    pays: tuple[str, ...] = ()
    spent_usd: float = 0.0


@dataclass(frozen=True, kw_only=True)
class DecisionBatch:
    """What was decided at one moment."""

    t: float
    decisions: tuple[DecisionEvent, ...]

    @property
    def key(self) -> str:
        return f"{_PREFIX}{round(self.t * 1000):015d}.json"


class DecisionLog(Journal[DecisionBatch]):
    """Append to and read the decisions of a fleet."""

    def __init__(self, store: ObjectStore, *, spool: Path) -> None:
        super().__init__(store, spool=spool / "decisions", prefix=_PREFIX, parse=_parse)

    def last(self, count: int | None = None) -> list[DecisionEvent]:
        """The newest decisions, oldest of them first; all of them without a count."""
        batches = self.read(last=count)
        found = [decision for batch in batches for decision in batch.decisions]
        return found if count is None else found[-count:]


def _parse(data: bytes) -> DecisionBatch:
    """A log outlives the version that wrote it: what is not known is passed over, what that version
    did not write has its default."""
    raw: dict[str, Any] = json.loads(data)
    return DecisionBatch(t=raw["t"], decisions=tuple(map(_decision, raw["decisions"])))


def _decision(raw: Mapping[str, Any]) -> DecisionEvent:
    known = {one.name for one in fields(DecisionEvent)}
    found: dict[str, Any] = {
        name: tuple(value) if name in ("hosts", "pays") else value
        for name, value in raw.items()
        if name in known
    }
    return DecisionEvent(**found)
