"""Reads facts for the ledger from a fleet's object store. What was read once stays in memory.

    reader = FactReader(store, spool=fleet.spool)
    facts = reader.read()

Runs are those below `runs/` of the store; a run that keeps its log elsewhere is not seen, and its
nodes are then told by who held them alone.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rayburst.checkpoint.store import ObjectStore
from rayburst.cost.entries import Owner
from rayburst.cost.facts import Charge, Facts
from rayburst.cost.granted import granted_holds
from rayburst.cost.usage import UsageLog
from rayburst.fleet.decisions import DecisionLog
from rayburst.fleet.events import EventLog
from rayburst.train.runlog import RunLogReader

CHARGES = "charges/"
_RUNS = "runs"


class FactReader:
    """One reader of one store; `usage` is shared with who writes it."""

    def __init__(self, store: ObjectStore, *, spool: Path, usage: UsageLog | None = None) -> None:
        self._store = store
        self._events = EventLog(store, spool=spool)
        self._decisions = DecisionLog(store, spool=spool)
        self._usage = usage or UsageLog(store)
        self._charges: dict[str, Charge] = {}
        self._logs: dict[str, RunLogReader] = {}

    def read(self) -> Facts:
        """All facts there are now. Raises StoreError when the store is away."""
        return Facts(
            events=self._events.read(),
            holds=[*self._usage.holds(), *granted_holds(self._decisions.last())],
            runs=self._runs(),
            charges=self._read_charges(),
        )

    def _runs(self) -> dict[str, list[dict[str, Any]]]:
        for name in self._store.folders(_RUNS):
            if name not in self._logs:
                self._logs[name] = RunLogReader(self._store.child(f"{_RUNS}/{name}"))
        return {name: log.read() for name, log in self._logs.items()}

    def _read_charges(self) -> list[Charge]:
        for info in self._store.list(CHARGES):
            if info.key not in self._charges:
                raw = json.loads(self._store.get(info.key))
                self._charges[info.key] = Charge(**{**raw, "owner": Owner(**raw["owner"])})
        return [self._charges[key] for key in sorted(self._charges)]
