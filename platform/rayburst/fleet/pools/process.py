"""Hosts that are process trees of this machine: real raylets, each with its own loopback address.

A host's record is a folder (see `records`), with `init.json` for its first process beside it, which
is `process_host`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

from rayburst.errors import PoolError
from rayburst.fleet import processes
from rayburst.fleet.files import read_json, write_atomically
from rayburst.fleet.pools.base import Host, Notice, check_room
from rayburst.fleet.pools.records import HostRecords, read_host
from rayburst.fleet.spec import PoolSpec

_SUBNET_HOSTS = range(2, 255)
_LAUNCH_TIMEOUT_S = 60.0
_HOST = (sys.executable, "-m", "rayburst.fleet.pools.process_host")


class ProcessPool:
    """A pool of process hosts.

    Args:
        fleet_dir: the fleet's folder.
        subnet: the fleet's part of the loopback network, like "127.40.7".
        first_process: what a host's first process runs; the host's folder is added to it.
    """

    def __init__(
        self,
        spec: PoolSpec,
        *,
        fleet_dir: Path,
        subnet: str,
        clock: Callable[[], float] = time.time,
        first_process: Sequence[str] = _HOST,
    ) -> None:
        self._spec = spec
        self._fleet_dir = fleet_dir
        self._subnet = subnet
        self._first_process = first_process
        self._records = HostRecords(fleet_dir, spec.name, found_dead=_found_dead, clock=clock)

    @property
    def name(self) -> str:
        return self._spec.name

    def hosts(self) -> list[Host]:
        return self._records.hosts()

    def launch(self, count: int, *, tags: Mapping[str, str], why: str) -> list[str]:
        with self._records.exclusive():
            living = sum(host.lives for host in self.hosts())
            check_room(self._spec, living, count)
            market = read_json(market_file(self._fleet_dir, self.name))
            if market is not None and living + count > market["hosts"]:
                raise PoolError(
                    f"pool {self.name!r} was asked for {count} more host(s) and has {living}; its "
                    f"market has {market['hosts']} now (`rayburst market {self.name}` opens it)"
                )
            return [self._launch_one(tags, why) for _ in range(count)]

    def tag(self, host: str, tags: Mapping[str, str]) -> None:
        self._records.tag(host, tags)

    def notify(self, host: str, notice: Notice) -> None:
        self._records.notify(host, notice)

    def terminate(self, host: str, *, why: str) -> None:
        self._records.end(host, why=why)
        if self._records.knows(host):
            processes.cut(self._fleet_dir, host)

    def forget(self, host: str) -> None:
        self._records.forget(host)

    def _launch_one(self, tags: Mapping[str, str], why: str) -> str:
        host = self._records.add(
            address=self._free_address(),
            price=self._spec.price_usd_per_hour,
            why=why,
            tags=tags,
        )
        folder = self._records.root / host.id
        env = {
            **os.environ,
            processes.OWNER_VARIABLE: str(self._fleet_dir),
            processes.HOST_VARIABLE: host.id,
        }
        init = processes.spawn(
            [*self._first_process, str(folder)],
            env=env,
            log=self._fleet_dir / "logs" / "hosts" / f"{host.id}.log",
        )
        record_init(folder, init.pid)
        return host.id

    def _free_address(self) -> str:
        taken = {
            record.address
            for folder in self._records.root.iterdir()
            if (record := read_host(folder)) is not None and record.lives
        }
        for last in _SUBNET_HOSTS:
            if (address := f"{self._subnet}.{last}") not in taken:
                return address
        raise PoolError(f"no free address left in {self._subnet}.0/24 for pool {self.name!r}")


def market_file(fleet_dir: Path, pool: str) -> Path:
    """Where it is written how many hosts a pool's market has, while it has fewer than the pool."""
    return fleet_dir / "market" / f"{pool}.json"


def _found_dead(folder: Path, host: Host) -> str:
    """Why a host whose first process died without a word is gone; empty while it lives."""
    init = read_json(folder / "init.json")
    if init is None:
        stale = time.time() - host.requested_at > _LAUNCH_TIMEOUT_S
        return "its launch was interrupted" if stale else ""
    living = processes.alive_pid(init["pid"], init["created"])
    return "" if living else "its processes died without notice"


def record_init(folder: Path, pid: int) -> None:
    """Record a host's first process. Launcher and process both do: either may die."""
    created = psutil.Process(pid).create_time()
    write_atomically(folder / "init.json", json.dumps({"pid": pid, "created": created}))
