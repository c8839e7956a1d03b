"""The ledger: what every node-second was for and what it cost, append-only on the object store.

    ledger = Ledger(store)
    ledger.settle(facts, now_ms=now_ms)             # write what is closed and not written yet
    entries = ledger.entries(facts, now_ms=now_ms)  # closed periods as written, others as of now

Time is cut into periods. When one is over its entries are written as one object,
`ledger/<start_ms>-0000.json`, that nobody changes again. Facts that come late (an event that
waited on a dead head's disk, steps that turn out to be lost) make another object of the same
period, `-0001` and so on, with the difference. So a period's objects sum to what its facts say.

Any number of writers may run, and any may die at any point. What a period's next object holds
follows from facts and from what is already there, and the store lets one writer create each object:
a writer that died before has written nothing, one that died after is found to be done by the next.
It deliberately does not know where facts come from (`bookkeeper.py`) nor how they are told.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from rayburst.checkpoint.store import ObjectStore
from rayburst.cost.attribution import LaunchPrices, Prices, Story, attribute, tell
from rayburst.cost.entries import Entry, added, difference
from rayburst.cost.facts import Facts
from rayburst.errors import ObjectExistsError

PREFIX = "ledger/"
PERIOD_MS = 3_600_000
GRACE_MS = 60_000
"""How long after its end a period is closed: most facts are there by then, and the others get a
second object."""

_TRIES = 8
_READERS = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """One object of the ledger."""

    start_ms: int
    number: int
    entries: Sequence[Entry]

    @property
    def key(self) -> str:
        return f"{PREFIX}{self.start_ms:015d}-{self.number:04d}.json"

    def to_bytes(self) -> bytes:
        told = {"version": 1, "entries": [entry.to_dict() for entry in self.entries]}
        return json.dumps(told).encode()

    @classmethod
    def parse(cls, key: str, data: bytes) -> Segment:
        start, number = key.removeprefix(PREFIX).removesuffix(".json").split("-")
        entries = [Entry.from_dict(raw) for raw in json.loads(data)["entries"]]
        return cls(start_ms=int(start), number=int(number), entries=entries)


class Ledger:
    """Writes and reads the ledger of one store. Segments that were read once are kept in memory."""

    def __init__(
        self,
        store: ObjectStore,
        *,
        prices: Prices | None = None,
        period_ms: int = PERIOD_MS,
        grace_ms: int = GRACE_MS,
    ) -> None:
        self._store = store
        self._prices = prices or LaunchPrices()
        self._period_ms = period_ms
        self._grace_ms = grace_ms
        self._known: dict[int, dict[int, Segment]] = {}  # by start, then by number

    def settle(self, facts: Facts, *, now_ms: int, since_ms: int = 0) -> int:
        """Bring every closed period that ends after `since_ms` up to the facts.

        Returns how many objects were written. A second call with the same facts writes none.

        Raises:
            StoreError: the store is away; what was written stays, call again.
        """
        story = tell(facts)
        self._refresh()
        written = 0
        for start in self._closed(story, now_ms):
            if start + self._period_ms > since_ms:
                written += self._bring_up_to(story, start, now_ms)
        return written

    def entries(self, facts: Facts, *, now_ms: int) -> list[Entry]:
        """All entries up to `now_ms`: periods as they were written, others as the facts say now."""
        story = tell(facts)
        self._refresh()
        starts = {*self._starts(story, now_ms), *self._known}
        found: list[Entry] = []
        for start in sorted(starts):
            written = self._segments(start)
            if written:
                found += added(entry for segment in written for entry in segment.entries)
            else:
                found += self._compute(story, start, now_ms)
        return found

    def _bring_up_to(self, story: Story, start: int, now_ms: int) -> int:
        """Write the difference between facts and ledger, unless there is none."""
        want = self._compute(story, start, now_ms)
        for _ in range(_TRIES):
            there = self._segments(start)
            lacks = difference(want, (e for segment in there for e in segment.entries))
            if not lacks:
                return 0
            segment = Segment(start_ms=start, number=len(there), entries=lacks)
            try:
                self._store.put(segment.key, segment.to_bytes(), if_absent=True)
            except ObjectExistsError:
                # another writer was first, or an answer was lost: what is there decides
                self._learn([segment.key])
                continue
            self._keep(segment)
            return 1
        return 0  # others are writing this very period; the next call sees what is left to do

    def _compute(self, story: Story, start: int, now_ms: int) -> list[Entry]:
        period = (start, start + self._period_ms)
        return attribute(story, prices=self._prices, period=period, now_ms=now_ms)

    def _starts(self, story: Story, until_ms: int) -> range:
        if story.first_ms is None:
            return range(0)
        first = story.first_ms - story.first_ms % self._period_ms
        return range(first, until_ms, self._period_ms)

    def _closed(self, story: Story, now_ms: int) -> Iterable[int]:
        over = now_ms - self._grace_ms
        return (s for s in self._starts(story, over) if s + self._period_ms <= over)

    def _segments(self, start: int) -> list[Segment]:
        mine = self._known.get(start, {})
        return [mine[number] for number in sorted(mine)]

    def _keep(self, segment: Segment) -> None:
        self._known.setdefault(segment.start_ms, {})[segment.number] = segment

    def _refresh(self) -> None:
        known = {segment.key for mine in self._known.values() for segment in mine.values()}
        self._learn(sorted({info.key for info in self._store.list(PREFIX)} - known))

    def _learn(self, keys: Sequence[str]) -> None:
        if not keys:
            return
        with ThreadPoolExecutor(_READERS) as pool:
            for key, data in zip(keys, pool.map(self._store.get, keys), strict=True):
                self._keep(Segment.parse(key, data))
