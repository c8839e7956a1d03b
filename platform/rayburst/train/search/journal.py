"""What a search knows, on the object store: its identity, and every value that was measured.

    journal = Journal(ObjectStore.open("s3://bucket/runs/search-1"))
    journal.begin(search.identity())
    journal.add(trial=3, step=100, value=3.21)
    journal.values()                        # {3: {100: 3.21}}

Each value is an object of its own that is written once, so any number of processes may write, die,
and write again. A search that was killed reads it and makes the same decisions.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from rayburst.checkpoint.store import ObjectStore
from rayburst.errors import ObjectExistsError, SearchError

__all__ = ["Journal"]

_IDENTITY = "search.json"
_VALUES = "values"
_ENDED = "ended"
_KEY = re.compile(r"values/(\d+)/(\d+)\.json")


class Journal:
    """See the module's head."""

    def __init__(self, store: ObjectStore) -> None:
        self.store = store

    def begin(self, identity: Mapping[str, Any]) -> bool:
        """Whether the search goes on. SearchError when it was begun with other words."""
        mine = json.loads(json.dumps(dict(identity)))
        try:
            self.store.put(_IDENTITY, json.dumps(mine, indent=1).encode(), if_absent=True)
            return False
        except ObjectExistsError:
            theirs = json.loads(self.store.get(_IDENTITY))
        for name in sorted({*mine, *theirs}):
            if mine.get(name) != theirs.get(name):
                raise SearchError(
                    f"{self.store.uri} was begun with {name}={theirs.get(name)!r}; now it is "
                    f"{mine.get(name)!r}, and what was measured would not be comparable. Give what "
                    "it was begun with, or another run"
                )
        return True

    def add(self, *, trial: int, step: int, value: float) -> float:
        """Write a value down, and return the one that stands: the first that was written."""
        body = {"value": value if math.isfinite(value) else None}
        key = f"{_VALUES}/{trial:05d}/{step:09d}.json"
        try:
            self.store.put(key, json.dumps(body).encode(), if_absent=True)
        except ObjectExistsError:
            return _value(self.store.get(key))
        return value

    def values(self) -> dict[int, dict[int, float]]:
        """Trial -> step -> value."""
        found: dict[int, dict[int, float]] = {}
        for item in self.store.list(_VALUES):
            match = _KEY.fullmatch(item.key)
            if match:
                of_trial = found.setdefault(int(match[1]), {})
                of_trial[int(match[2])] = _value(self.store.get(item.key))
        return found

    def of_trial(self, trial: int) -> dict[int, float]:
        """Step -> value of one trial."""
        found = {}
        for item in self.store.list(f"{_VALUES}/{trial:05d}"):
            match = _KEY.fullmatch(item.key)
            if match:
                found[int(match[2])] = _value(self.store.get(item.key))
        return found

    def end(self, trial: int) -> None:
        """The trial's training function came to its end, its last checkpoint included."""
        self.store.put(f"{_ENDED}/{trial:05d}.json", b"{}")

    def ended(self) -> set[int]:
        """The trials that `end` was called for."""
        names = (item.key.rsplit("/", 1)[-1] for item in self.store.list(_ENDED))
        return {int(name.removesuffix(".json")) for name in names}

    def put(self, key: str, body: Mapping[str, Any]) -> None:
        """A result, which may be written again."""
        self.store.put(key, json.dumps(dict(body), indent=1).encode())


def _value(body: bytes) -> float:
    value = json.loads(body)["value"]
    return math.inf if value is None else float(value)
