"""Failed launches of each pool, on file: the provider writes them, the agent reads them.

    record_failure(fleet, "spot-a", at=now, why="no capacity")
    read_failures(fleet)["spot-a"].at          # times, oldest first
    recovered(fleet, "spot-a", at=asked_at)    # a host joined: what came before is over

Kept in the fleet's folder, so that neither a restarted agent nor a host's record that is forgotten
makes a pool look well. Recording the same failure again changes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from fcntl import LOCK_EX, flock
from pathlib import Path
from typing import Any

from rayburst.fleet.files import read_json, write_atomically
from rayburst.fleet.layout import FleetDir

KEPT = 16
"""Failures of a pool that are kept, the newest: more than a back-off can count."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Failures:
    """Failed launches of a pool since it last launched a host that joined.

    Attributes:
        at: unix seconds, oldest first; at least one.
        why: of the last one.
    """

    at: tuple[float, ...]
    why: str


def read_failures(fleet: FleetDir) -> Mapping[str, Failures]:
    """What is on file, by pool."""
    folder = _folder(fleet)
    found = {file.stem: _read(file) for file in sorted(folder.glob("*.json"))}
    return {pool: failures for pool, failures in found.items() if failures is not None}


def record_failure(fleet: FleetDir, pool: str, *, at: float, why: str) -> None:
    """Leave word of a failed launch: the planner closes the pool for a while."""
    with _locked(fleet):
        file = _file(fleet, pool)
        known = _read(file)
        if known is None:
            _write(file, Failures(at=(at,), why=why))
        elif at not in known.at:
            times = tuple(sorted({*known.at, at}))[-KEPT:]
            _write(file, Failures(at=times, why=why if times[-1] == at else known.why))


def recovered(fleet: FleetDir, pool: str, *, at: float) -> None:
    """A host that was asked for at `at` has joined: failures up to then no longer count."""
    with _locked(fleet):
        file = _file(fleet, pool)
        known = _read(file)
        later = tuple(one for one in known.at if one > at) if known else ()
        if known is None or later == known.at:
            return
        if later:
            _write(file, Failures(at=later, why=known.why))
        else:
            file.unlink()


def _folder(fleet: FleetDir) -> Path:
    return fleet.path / "failures"


def _file(fleet: FleetDir, pool: str) -> Path:
    return _folder(fleet) / f"{pool}.json"


def _read(file: Path) -> Failures | None:
    raw: Mapping[str, Any] | None = read_json(file)
    if not raw:
        return None
    at = raw["at"] if isinstance(raw["at"], list) else [raw["at"]]  # 0.1.x kept only the last
    return Failures(at=tuple(at), why=str(raw["why"]))


def _write(file: Path, failures: Failures) -> None:
    write_atomically(file, json.dumps(asdict(failures)))


@contextmanager
def _locked(fleet: FleetDir) -> Iterator[None]:
    _folder(fleet).mkdir(parents=True, exist_ok=True)
    with (_folder(fleet) / "lock").open("w") as lock:
        flock(lock, LOCK_EX)
        yield
