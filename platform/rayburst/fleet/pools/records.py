"""What a pool knows of its hosts, as files: for pools whose hosts carry no tags of their own.

    records = HostRecords(fleet_dir, "rack")
    with records.exclusive():
        host = records.add(address="10.0.0.7", price=None, why="pending work", tags=tags, now=now)
    records.end(host.id, at=now, why="given back")

A host is a folder `hosts/ID/` of the fleet with one file a fact, each written once or replaced
whole: `host.json` (what was asked for), `tags.json`, `notice.json`, `gone.json`. So provider,
agent, command line and what keeps the host share it without a server, and a restarted one finds
what it left. It starts and ends nothing.
"""

from __future__ import annotations

import fcntl
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from secrets import token_hex
from typing import Any

from rayburst.errors import NodeNotFoundError
from rayburst.fleet.files import create_once, read_json, write_atomically
from rayburst.fleet.pools.base import Host, Notice, pool_of


class HostRecords:
    """The hosts of one pool on record.

    Args:
        fleet_dir: the fleet's folder.
        found_dead: asked about every host that lives by its record; a reason marks it as gone, so
            whoever looks, sees.
    """

    def __init__(
        self,
        fleet_dir: Path,
        pool: str,
        *,
        found_dead: Callable[[Path, Host], str] = lambda folder, host: "",
        clock: Callable[[], float],
    ) -> None:
        self._fleet_dir = fleet_dir
        self._pool = pool
        self._found_dead = found_dead
        self._clock = clock
        self.root = fleet_dir / "hosts"

    def hosts(self) -> list[Host]:
        """Every host that was not forgotten, in the order of their requests."""
        mine = re.compile(rf"{re.escape(self._pool)}-[0-9a-f]+")
        if not self.root.is_dir():
            return []
        folders = [f for f in self.root.iterdir() if mine.fullmatch(f.name)]
        found = [host for folder in folders if (host := self._read(folder)) is not None]
        return sorted(found, key=lambda host: (host.requested_at, host.id))

    def add(
        self,
        *,
        address: str,
        price: float | None,
        why: str,
        tags: Mapping[str, str],
        facts: Mapping[str, Any] | None = None,
    ) -> Host:
        """Put a new host on record. `facts` goes beside it as `facts.json`, for the pool."""
        host_id = f"{self._pool}-{token_hex(2)}"
        while (self.root / host_id).exists():
            host_id = f"{self._pool}-{token_hex(2)}"
        folder = self.root / host_id
        folder.mkdir(parents=True)
        record: dict[str, Any] = {
            "id": host_id,
            "pool": self._pool,
            "address": address,
            "requested_at": self._clock(),
            "price_usd_per_hour": price,
            "why": why,
        }
        write_atomically(folder / "tags.json", json.dumps(dict(tags)))
        if facts is not None:
            write_atomically(folder / "facts.json", json.dumps(dict(facts)))
        write_atomically(folder / "host.json", json.dumps(record))
        return Host(**record, tags=dict(tags))

    def facts(self, host: str) -> dict[str, Any]:
        """What the pool left beside a host; empty when nothing."""
        return read_json(self.root / host / "facts.json") or {}

    def tag(self, host: str, tags: Mapping[str, str]) -> None:
        """Merge tags. Raises NodeNotFoundError."""
        with self.exclusive():
            folder = self.folder(host)
            merged = {**(read_json(folder / "tags.json") or {}), **tags}
            write_atomically(folder / "tags.json", json.dumps(merged))

    def notify(self, host: str, notice: Notice) -> None:
        """Put a notice on record; the first one stands. Raises NodeNotFoundError."""
        create_once(self.folder(host) / "notice.json", json.dumps(asdict(notice)))

    def end(self, host: str, *, why: str) -> bool:
        """Record an end; the first reason stands. False when there is nothing to end."""
        return self.knows(host) and mark_gone(self.root / host, at=self._clock(), why=why)

    def forget(self, host: str) -> None:
        """Drop the record of a host that is gone."""
        if self.knows(host) and (self.root / host / "gone.json").exists():
            shutil.rmtree(self.root / host, ignore_errors=True)

    def folder(self, host: str) -> Path:
        """The folder of a host. Raises NodeNotFoundError that lists the living ones."""
        if not self.knows(host):
            known = ", ".join(h.id for h in self.hosts() if h.lives) or "none"
            raise NodeNotFoundError(f"no host {host!r} in pool {self._pool!r}; it has: {known}")
        return self.root / host

    def knows(self, host: str) -> bool:
        """Whether a host is this pool's and on record, living or gone."""
        return pool_of(host) == self._pool and (self.root / host / "host.json").exists()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """One launch or tag change of the fleet at a time, over threads and processes."""
        self.root.mkdir(parents=True, exist_ok=True)
        with (self._fleet_dir / "hosts.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _read(self, folder: Path) -> Host | None:
        host = read_host(folder)
        if host is not None and host.lives and (why := self._found_dead(folder, host)):
            mark_gone(folder, at=self._clock(), why=why)
            host = read_host(folder)
        return host


def read_host(folder: Path) -> Host | None:
    """The host recorded in `folder`; None while it is being written or after it was forgotten."""
    record = read_json(folder / "host.json")
    if record is None:
        return None
    gone = read_json(folder / "gone.json")
    notice = read_json(folder / "notice.json")
    return Host(
        **record,
        tags=read_json(folder / "tags.json") or {},
        notice=Notice(**notice) if notice else None,
        gone_at=gone["at"] if gone else None,
        gone_why=gone["why"] if gone else "",
    )


def mark_gone(folder: Path, *, at: float, why: str) -> bool:
    """Record the end of a host; the first reason stands. False when it was on record already."""
    fact: dict[str, Any] = {"at": at, "why": why}
    return create_once(folder / "gone.json", json.dumps(fact))
