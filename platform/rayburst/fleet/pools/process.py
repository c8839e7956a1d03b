"""Hosts that are process trees of this machine: real raylets, each with its own loopback address.

A host is a folder `hosts/ID/` of the fleet with one file a fact, each written once or replaced
whole: `host.json` (what was asked for), `tags.json`, `init.json` (its first process),
`notice.json`, `gone.json`. So the autoscaler's provider, the agent, the command line and the host
itself share it without a server, and a restarted one finds what it left. The host's first process
is `process_host`.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from secrets import token_hex
from typing import Any

import psutil

from rayburst.errors import NodeNotFoundError, PoolError
from rayburst.fleet import processes
from rayburst.fleet.files import create_once, read_json, write_atomically
from rayburst.fleet.pools.base import Host, Notice
from rayburst.fleet.spec import PoolSpec

_SUBNET_HOSTS = range(2, 255)
_LAUNCH_TIMEOUT_S = 60.0


class ProcessPool:
    """A pool of process hosts. `fleet_dir` is the fleet's folder, `subnet` is like "127.40.7"."""

    def __init__(
        self,
        spec: PoolSpec,
        *,
        fleet_dir: Path,
        subnet: str,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._spec = spec
        self._fleet_dir = fleet_dir
        self._hosts_dir = fleet_dir / "hosts"
        self._subnet = subnet
        self._clock = clock

    @property
    def name(self) -> str:
        return self._spec.name

    def hosts(self) -> list[Host]:
        mine = re.compile(rf"{re.escape(self.name)}-[0-9a-f]{{4}}")
        if not self._hosts_dir.is_dir():
            return []
        found = [
            host
            for folder in sorted(self._hosts_dir.iterdir())
            if mine.fullmatch(folder.name) and (host := read_host(folder)) is not None
        ]
        return sorted(found, key=lambda host: (host.requested_at, host.id))

    def launch(self, count: int, *, tags: Mapping[str, str], why: str) -> list[str]:
        with self._exclusive():
            living = sum(host.lives for host in self.hosts())
            if living + count > self._spec.max_hosts:
                raise PoolError(
                    f"pool {self.name!r} was asked for {count} more host(s) and has {living} of at "
                    f"most {self._spec.max_hosts}; raise `hosts: {{max: ...}}` in the fleet file"
                )
            market = read_json(market_file(self._fleet_dir, self.name))
            if market is not None and living + count > market["hosts"]:
                raise PoolError(
                    f"pool {self.name!r} was asked for {count} more host(s) and has {living}; its "
                    f"market has {market['hosts']} now (`rayburst market {self.name}` opens it)"
                )
            return [self._launch_one(tags, why) for _ in range(count)]

    def tag(self, host: str, tags: Mapping[str, str]) -> None:
        with self._exclusive():
            folder = self._folder(host)
            merged = {**(read_json(folder / "tags.json") or {}), **tags}
            write_atomically(folder / "tags.json", json.dumps(merged))

    def notify(self, host: str, notice: Notice) -> None:
        create_once(self._folder(host) / "notice.json", json.dumps(asdict(notice)))

    def terminate(self, host: str, *, why: str) -> None:
        folder = self._hosts_dir / host
        if not (folder / "host.json").exists():
            return
        mark_gone(folder, at=self._clock(), why=why)
        processes.cut(self._fleet_dir, host)

    def forget(self, host: str) -> None:
        if (self._hosts_dir / host / "gone.json").exists():
            shutil.rmtree(self._hosts_dir / host, ignore_errors=True)

    def _folder(self, host: str) -> Path:
        folder = self._hosts_dir / host
        if not (folder / "host.json").exists():
            known = ", ".join(h.id for h in self.hosts() if h.lives) or "none"
            raise NodeNotFoundError(f"no host {host!r} in pool {self.name!r}; it has: {known}")
        return folder

    def _launch_one(self, tags: Mapping[str, str], why: str) -> str:
        host_id = f"{self.name}-{token_hex(2)}"
        folder = self._hosts_dir / host_id
        folder.mkdir(parents=True)
        record = {
            "id": host_id,
            "pool": self.name,
            "address": self._free_address(),
            "requested_at": self._clock(),
            "price_usd_per_hour": self._spec.price_usd_per_hour,
            "why": why,
        }
        write_atomically(folder / "tags.json", json.dumps(dict(tags)))
        write_atomically(folder / "host.json", json.dumps(record))
        env = {
            **os.environ,
            processes.OWNER_VARIABLE: str(self._fleet_dir),
            processes.HOST_VARIABLE: host_id,
        }
        init = processes.spawn(
            [sys.executable, "-m", "rayburst.fleet.pools.process_host", str(folder)],
            env=env,
            log=self._fleet_dir / "logs" / "hosts" / f"{host_id}.log",
        )
        record_init(folder, init.pid)
        return host_id

    def _free_address(self) -> str:
        taken = {
            record.address
            for folder in self._hosts_dir.iterdir()
            if (record := read_host(folder)) is not None and record.lives
        }
        for last in _SUBNET_HOSTS:
            if (address := f"{self._subnet}.{last}") not in taken:
                return address
        raise PoolError(f"no free address left in {self._subnet}.0/24 for pool {self.name!r}")

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """One launch or tag change at a time, over threads and processes."""
        self._hosts_dir.mkdir(parents=True, exist_ok=True)
        with (self._fleet_dir / "hosts.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def market_file(fleet_dir: Path, pool: str) -> Path:
    """Where it is written how many hosts a pool's market has, while it has fewer than the pool."""
    return fleet_dir / "market" / f"{pool}.json"


def read_host(folder: Path) -> Host | None:
    """The host recorded in `folder`; None while it is being written or after it was forgotten.

    A host whose first process died without a word is marked as gone here: whoever looks, sees.
    """
    record = read_json(folder / "host.json")
    if record is None:
        return None
    init = read_json(folder / "init.json")
    gone = read_json(folder / "gone.json")
    if gone is None and (why := _found_dead(record, init)):
        mark_gone(folder, at=time.time(), why=why)
        gone = read_json(folder / "gone.json")
    notice = read_json(folder / "notice.json")
    return Host(
        **record,
        tags=read_json(folder / "tags.json") or {},
        notice=Notice(**notice) if notice else None,
        gone_at=gone["at"] if gone else None,
        gone_why=gone["why"] if gone else "",
    )


def _found_dead(record: dict[str, Any], init: dict[str, Any] | None) -> str:
    if init is None:
        stale = time.time() - record["requested_at"] > _LAUNCH_TIMEOUT_S
        return "its launch was interrupted" if stale else ""
    living = processes.alive_pid(init["pid"], init["created"])
    return "" if living else "its processes died without notice"


def record_init(folder: Path, pid: int) -> None:
    """Record a host's first process. Launcher and process both do: either may die."""
    created = psutil.Process(pid).create_time()
    write_atomically(folder / "init.json", json.dumps({"pid": pid, "created": created}))


def mark_gone(folder: Path, *, at: float, why: str) -> bool:
    """Record the end of a host; the first reason stands. False when it was on record already."""
    fact: dict[str, Any] = {"at": at, "why": why}
    return create_once(folder / "gone.json", json.dumps(fact))
