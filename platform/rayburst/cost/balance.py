"""What a fleet has spent, from its ledger, for whoever keeps to budgets.

    balance = Balance(fleet, store)
    balance.read(now)       # worked out from all facts; seconds, so once, at the start
    balance.told()          # as the bookkeeper last said, at most a minute or two ago

The ledger is the only record; neither way writes anything.
"""

from __future__ import annotations

from rayburst.checkpoint.store import ObjectStore
from rayburst.cost.ledger import Ledger
from rayburst.cost.reader import FactReader
from rayburst.cost.spent import Spent, spent_of
from rayburst.fleet.files import read_json
from rayburst.fleet.layout import FleetDir


class Balance:
    """One fleet's spending as its ledger has it."""

    def __init__(self, fleet: FleetDir, store: ObjectStore) -> None:
        self._fleet, self._store = fleet, store

    def read(self, now: float) -> Spent:
        """Up to `now`. Raises StoreError when the store is away."""
        facts = FactReader(self._store, spool=self._fleet.spool).read()
        entries = Ledger(self._store).entries(facts, now_ms=round(now * 1000))
        return spent_of(entries, at=now)

    def told(self) -> Spent | None:
        """What the bookkeeper wrote last; None before its first word."""
        raw = read_json(self._fleet.spent_file)
        return None if raw is None else Spent(**raw)
