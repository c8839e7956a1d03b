"""Looking after the hosts of an SSH pool: health, owners' wishes, opening hours, unpaid releases.

Whoever lists the hosts starts a look in the background, at most one every few seconds over all
processes of a head. A host is gone when its machine did not answer three looks in a row, started
again, or lost its lease. A machine that could not be given back is owed its release, and gets it as
soon as it answers.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayburst.errors import (
    FleetBrokenError,
    NodeNotFoundError,
    PoolError,
    PoolUnreachableError,
)
from rayburst.fleet.files import read_json, write_atomically
from rayburst.fleet.pools.base import OWNERS_WISH, UP_TAG, Host, Notice
from rayburst.fleet.pools.quarantine import Quarantine
from rayburst.fleet.pools.records import HostRecords
from rayburst.fleet.pools.ssh_host import Seen
from rayburst.fleet.pools.ssh_join import was_told

if TYPE_CHECKING:
    from rayburst.fleet.pools.ssh import SshPool

LOOK_S = 5.0
MISSES = 3
_LAUNCH_S = 60.0
AT_ONCE = 16
_PATIENCE_S = 3.0


def why_dead(folder: Path, host: Host, *, now: float) -> str:
    """Why a host is gone by what the last looks wrote beside it; empty while it lives."""
    if not (folder / "leased.json").exists():
        return "its launch was interrupted" if now - host.requested_at > _LAUNCH_S else ""
    return str((read_json(folder / "looks.json") or {}).get("dead", ""))


class SshCare:
    """Looks after one pool's hosts."""

    def __init__(
        self,
        pool: SshPool,
        records: HostRecords,
        quarantine: Quarantine,
        folder: Path,
        *,
        clock: Callable[[], float],
    ) -> None:
        self._pool = pool
        self._records = records
        self._quarantine = quarantine
        self._folder = folder
        self._clock = clock
        self._thread: threading.Thread | None = None

    def look_in_background(self) -> None:
        """Start a look, unless one runs or was just done."""
        if self._thread is not None and self._thread.is_alive():
            return
        done = read_json(self._folder / "look.json")
        if done is None or self._clock() - done["at"] >= LOOK_S or done["at"] > self._clock():
            self._thread = threading.Thread(target=self.look, name="ssh-care", daemon=True)
            self._thread.start()

    def look(self) -> None:
        """Look at every host once, and act on what is seen; not while another process does."""
        with self._alone() as alone:
            if not alone:
                return
            hosts = self._records.hosts()
            with ThreadPoolExecutor(AT_ONCE) as pool:
                list(pool.map(self._care_for, hosts))
            write_atomically(self._folder / "look.json", json.dumps({"at": self._clock()}))

    def owe(self, host: str) -> None:
        """Put on record that a machine is to be given back."""
        write_atomically(self._records.root / host / "owed.json", "{}")

    def release_soon(self, host: str) -> None:
        """Give a machine back; one that hangs is not waited for longer than a moment."""
        work = threading.Thread(target=self.release, args=(host,), daemon=True)
        work.start()
        work.join(_PATIENCE_S)

    def release(self, host: str) -> None:
        """Give a machine back now, or as soon as it answers."""
        folder = self._records.root / host
        self.owe(host)
        found = next((one for one in self._records.hosts() if one.id == host), None)
        machine = self._pool.machine(found) if found else None
        if found is None or machine is None:
            (folder / "owed.json").unlink(missing_ok=True)
            return
        try:
            machine.release(host)
        except PoolUnreachableError as error:
            self._quarantine.add(found.address, str(error))
        else:
            (folder / "owed.json").unlink(missing_ok=True)

    def owes(self, host: str) -> bool:
        """Whether its machine has not been given back yet."""
        return (self._records.root / host / "owed.json").exists()

    def _care_for(self, host: Host) -> None:
        folder, machine = self._records.root / host.id, self._pool.machine(host)
        # a host may be given back and forgotten while it is looked at
        with contextlib.suppress(FileNotFoundError, FleetBrokenError, NodeNotFoundError, PoolError):
            if machine is None:
                return
            if not host.lives:
                if self.owes(host.id):
                    self.release(host.id)
                return
            leased = read_json(folder / "leased.json")
            if leased is None:
                return
            self._pool.join(host)
            try:
                seen = machine.look(host.id)
            except PoolUnreachableError as error:
                self._missed(folder, host, str(error))
                return
            self._answered(folder, host, seen, leased)

    def _missed(self, folder: Path, host: Host, why: str) -> None:
        looks: dict[str, Any] = read_json(folder / "looks.json") or {}
        misses = looks.get("misses", 0) + 1
        told: dict[str, Any] = {"misses": misses}
        if misses >= MISSES:
            told["dead"] = f"lost: {why}"
            write_atomically(folder / "owed.json", "{}")
            self._quarantine.add(host.address, why)
        write_atomically(folder / "looks.json", json.dumps(told))

    def _answered(self, folder: Path, host: Host, seen: Seen, leased: dict[str, Any]) -> None:
        dead = ""
        if seen.boot != leased["boot"]:
            dead = "lost: its machine started again"
        elif seen.lease is None or seen.lease.host != host.id:
            holder = f"is held by {seen.lease.fleet}" if seen.lease else "was removed"
            dead = f"lost: its lease on {host.address} {holder}"
        elif was_told(folder) and not (seen.processes and not seen.ended):
            dead = seen.ended or "its processes died without notice"
            if UP_TAG not in host.tags:
                self._quarantine.add(host.address, dead)
        write_atomically(folder / "looks.json", json.dumps({"misses": 0, "dead": dead}))
        if dead:
            self.release(host.id)
            return
        now = self._clock()
        if host.notice is not None:
            if host.notice.reclaim and now >= host.notice.deadline:
                self._pool.terminate(host.id, why=f"taken: {host.notice.why}")
            return
        if seen.reclaim_s is not None:
            given_at = now - seen.reclaim_age_s
            deadline = given_at + seen.reclaim_s
            notice = Notice(given_at=given_at, deadline=deadline, why=OWNERS_WISH)
            self._records.notify(host.id, notice)
            return
        closes = self._pool.hours.closes_at(now)
        if closes is not None and closes - now <= self._pool.notice_s:
            notice = Notice(given_at=now, deadline=closes, why="its opening hours end")
            self._records.notify(host.id, notice)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[bool]:
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / "look.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True
