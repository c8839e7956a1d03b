"""Hosts that are machines of yours, reached over SSH: leased, looked after, given back.

    SshPool(spec, site).launch(1, tags={}, why="pending work")

A launch leases machines that are there: one that another fleet has, that its owner wants, or that
failed a while ago is passed over. What leases, records and looks found lies on the machines and in
the fleet's folder, so any process may open the pool; one of them at a time looks after the hosts
(`ssh_care`). A lease of this fleet that no record knows is an orphan of an earlier head, and ended.

Where the site has a cluster, a leased machine is told to join it (`ssh_join`); a machine whose node
ended, or never started, is given back.
"""

from __future__ import annotations

import fcntl
import json
import subprocess
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from rayburst.errors import PoolCapacityError, PoolError, PoolUnreachableError
from rayburst.fleet.files import write_atomically
from rayburst.fleet.hours import OpeningHours
from rayburst.fleet.layout import FleetDir
from rayburst.fleet.pools.base import Host, Notice, PoolSite, check_room
from rayburst.fleet.pools.quarantine import Quarantine
from rayburst.fleet.pools.records import HostRecords
from rayburst.fleet.pools.ssh_care import AT_ONCE, SshCare, why_dead
from rayburst.fleet.pools.ssh_host import Lease, Run, Seen, SshMachine
from rayburst.fleet.pools.ssh_join import tell_in_background
from rayburst.fleet.spec import HEAD, PoolSpec

_MEMORY_SLACK = 0.9  # a kernel keeps some of what a machine has


class SshPool:
    """A pool of leased machines; safe to use from several threads and processes of one head.

    Args:
        run: what runs the `ssh` command, as `subprocess.run`.
    """

    def __init__(self, spec: PoolSpec, site: PoolSite, *, run: Run = subprocess.run) -> None:
        if spec.ssh is None:
            raise PoolError(f"pool {spec.name!r} of kind ssh needs a block `ssh`")
        self._spec = spec
        self._site = site
        self._machines = {at: SshMachine(at, spec.ssh, run=run) for at in spec.ssh.hosts}
        self._hours = OpeningHours.parse(spec.ssh.open, timezone=spec.ssh.timezone)
        self._folder = folder = site.folder / "ssh" / spec.name
        self._quarantine = Quarantine(folder, clock=site.clock)
        self._records = HostRecords(
            site.folder, spec.name, found_dead=self._found_dead, clock=site.clock
        )
        self._care = SshCare(self, self._records, self._quarantine, folder, clock=site.clock)

    @property
    def name(self) -> str:
        return self._spec.name

    @property
    def hours(self) -> OpeningHours:
        return self._hours

    @property
    def notice_s(self) -> float:
        """How long before the hours end a host gets notice."""
        return self._spec.ssh.notice_s if self._spec.ssh else 0.0

    def machine(self, host: Host) -> SshMachine | None:
        """Where a host is; None when the fleet file does not name it any more."""
        return self._machines.get(host.address)

    def look(self) -> None:
        """Look at every host now and act on what is seen; `hosts` has it done in background."""
        self._care.look()

    def hosts(self) -> list[Host]:
        self._care.look_in_background()
        return self._records.hosts()

    def launch(self, count: int, *, tags: Mapping[str, str], why: str) -> list[str]:
        with self._one_at_a_time():
            mine = self._records.hosts()
            check_room(self._spec, sum(host.lives for host in mine), count)
            now = self._site.clock()
            if not self._hours.is_open(now):
                opens = time.strftime("%a %H:%M UTC", time.gmtime(self._hours.opens_at(now)))
                raise PoolCapacityError(f"pool {self.name!r} is closed; it opens {opens}")
            taken = {host.address for host in mine if host.lives}
            passed: list[str] = []
            made: list[Host] = []
            for machine in (m for at, m in self._machines.items() if at not in taken):
                if len(made) == count:
                    break
                try:
                    made.append(self._lease(machine, tags, why))
                except PoolError as error:
                    passed.append(str(error))
            if len(made) == count:
                for host in made:
                    self.join(host)
                return [host.id for host in made]
            for host in made:
                self.terminate(host.id, why="the launch fell short")
                self.forget(host.id)
        told = "; ".join([*passed, *(f"{at} is in use" for at in taken)])
        raise PoolCapacityError(
            f"pool {self.name!r} has {len(made)} of {count} machine(s) that could be leased: {told}"
        )

    @contextmanager
    def _one_at_a_time(self) -> Iterator[None]:
        """One launch of this pool, over threads and processes; it may wait for machines."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / "launch.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def join(self, host: Host) -> None:
        """Have a leased machine join the cluster, where there is one; returns at once."""
        machine = self.machine(host)
        if self._site.joins and machine is not None:
            folder = self._records.root / host.id
            tell_in_background(FleetDir(self._site.folder), host, machine, folder)

    def reap(self) -> list[str]:
        """Give back machines that an earlier head of this fleet had; their hosts' ids.

        Machines that give no answer are left: a launch that meets them does the same.
        """
        with self._one_at_a_time(), ThreadPoolExecutor(AT_ONCE) as workers:
            held = {host.address for host in self._records.hosts() if host.lives}
            free = [machine for at, machine in self._machines.items() if at not in held]
            return [host for host in workers.map(self._reap, free) if host]

    def _reap(self, machine: SshMachine) -> str:
        with suppress(PoolUnreachableError):
            lease = machine.look().lease
            if lease and lease.fleet == self._site.fleet and lease.host != HEAD:
                machine.release(lease.host)
                return lease.host
        return ""

    def tag(self, host: str, tags: Mapping[str, str]) -> None:
        self._records.tag(host, tags)

    def notify(self, host: str, notice: Notice) -> None:
        self._records.notify(host, notice)

    def terminate(self, host: str, *, why: str) -> None:
        if any(one.id == host and one.lives for one in self._records.hosts()):
            self._care.owe(host)  # first: whoever ends between the two leaves no lease behind
            self._records.end(host, why=why)
            self._care.release_soon(host)

    def forget(self, host: str) -> None:
        if not self._care.owes(host):
            self._records.forget(host)

    def _lease(self, machine: SshMachine, tags: Mapping[str, str], why: str) -> Host:
        """A machine's host, on record. PoolError when it cannot be had; nothing is left then."""
        if held := self._quarantine.why(machine.address):
            raise PoolError(f"{machine.address} is in quarantine: {held}")
        price = self._spec.price_usd_per_hour
        host = self._records.add(address=machine.address, price=price, why=why, tags=tags)
        try:
            seen = self._take(machine, host)
        except PoolError as error:
            self._records.end(host.id, why=str(error))
            self._records.forget(host.id)
            raise
        write_atomically(
            self._records.root / host.id / "leased.json", json.dumps({"boot": seen.boot})
        )
        self._quarantine.clear(machine.address)
        return host

    def _take(self, machine: SshMachine, host: Host) -> Seen:
        mine = Lease(fleet=self._site.fleet, host=host.id, at=self._site.clock())
        try:
            seen = machine.take(mine)
            if seen.lease and seen.lease.fleet == mine.fleet and seen.lease.host != mine.host:
                if seen.lease.host == HEAD:
                    raise PoolError(f"{machine.address} is the head of the fleet")
                if self._records.knows(seen.lease.host) and self._lives(seen.lease.host):
                    raise PoolError(f"{machine.address} is in use by {seen.lease.host}")
                machine.release(seen.lease.host)  # an orphan of an earlier head
                seen = machine.take(mine)
        except PoolUnreachableError as error:
            self._quarantine.add(machine.address, str(error))
            raise
        if seen.reclaim_s is not None and seen.lease is None:
            raise PoolError(f"{machine.address} is wanted by its owner")
        if seen.lease != mine:
            holder = seen.lease.fleet if seen.lease else "nobody"
            raise PoolError(f"{machine.address} is leased to fleet {holder!r}")
        if lacks := self._lacks(seen):
            machine.release(host.id)
            self._quarantine.add(machine.address, lacks)
            raise PoolError(f"{machine.address} {lacks}")
        return seen

    def _lives(self, host: str) -> bool:
        return any(one.lives for one in self._records.hosts() if one.id == host)

    def _lacks(self, seen: Seen) -> str:
        shape = self._spec.shape
        has = {"CPUs": seen.cpus, "GPUs": seen.gpus, "bytes of memory": seen.memory_bytes}
        wants = {
            "CPUs": shape.cpus,
            "GPUs": shape.gpus,
            "bytes of memory": int(shape.memory_bytes * _MEMORY_SLACK),
        }
        short = [f"{has[one]} of {wants[one]} {one}" for one in wants if has[one] < wants[one]]
        return f"has {', '.join(short)}" if short else ""

    def _found_dead(self, folder: Path, host: Host) -> str:
        return why_dead(folder, host, now=self._site.clock())
