"""What this head did to EC2 instances lately: EC2 may tell it seconds later.

One small file a pool, `ec2/POOL.json` in the fleet's folder, changed under a lock. Losing it loses
no host: instances carry their record in tags. Entries go when EC2 has had time to tell them.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rayburst.fleet.files import read_json, write_atomically
from rayburst.fleet.pools.ec2_instances import GONE

REMEMBER_S = 120.0
FORGOTTEN_S = 7_200.0
"""EC2 tells of ended instances for about an hour."""


@dataclass
class Recent:
    """What was done lately, by instance."""

    launched: dict[str, dict[str, Any]] = field(default_factory=dict)
    said: dict[str, dict[str, str]] = field(default_factory=dict)
    said_at: dict[str, float] = field(default_factory=dict)
    forgotten: dict[str, float] = field(default_factory=dict)


class Ec2Memory:
    """A pool's recent deeds, shared by the processes of one head."""

    def __init__(self, fleet_dir: Path, pool: str) -> None:
        self._file = fleet_dir / "ec2" / f"{pool}.json"

    def read(self, now: float) -> Recent:
        """What is still worth remembering."""
        recent = Recent(**(read_json(self._file) or {}))
        launched = {i: one for i, one in recent.launched.items() if now - one["at"] < REMEMBER_S}
        said_at = {
            i: at
            for i, at in recent.said_at.items()
            if now - at < (FORGOTTEN_S if GONE in recent.said[i] else REMEMBER_S)
        }
        return Recent(
            launched=launched,
            said={instance: recent.said[instance] for instance in said_at},
            said_at=said_at,
            forgotten={i: at for i, at in recent.forgotten.items() if now - at < FORGOTTEN_S},
        )

    def add_launched(self, instances: Sequence[str], tags: Mapping[str, str], now: float) -> None:
        with self._change(now) as recent:
            recent.launched |= {one: {"at": now, "tags": dict(tags)} for one in instances}

    def add_said(self, instance: str, tags: Mapping[str, str], now: float) -> None:
        with self._change(now) as recent:
            recent.said[instance] = {**recent.said.get(instance, {}), **tags}
            recent.said_at[instance] = now

    def forget(self, instance: str, now: float) -> None:
        with self._change(now) as recent:
            recent.forgotten[instance] = now
            recent.launched.pop(instance, None)

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """One launch of the pool at a time, over threads and processes of this head."""
        with self._locked("launch"):
            yield

    @contextmanager
    def _change(self, now: float) -> Iterator[Recent]:
        with self._locked("file"):
            recent = self.read(now)
            yield recent
            write_atomically(self._file, json.dumps(asdict(recent)))

    @contextmanager
    def _locked(self, what: str) -> Iterator[None]:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.with_suffix(f".{what}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
