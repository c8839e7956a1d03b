"""Whether the machines of a fleet file are fit to be one fleet: tried from each of them, at once.

    for find in check_live(spec, environment=os.environ):
        find.host, find.probe, find.wrong     # wrong is "" where all is well

Over SSH, as `ray up` reaches them: the head and every machine of the pools of kind ssh. Each tells
its clock, its versions, CPUs, memory and GPUs, tries the object store, and connects to every other
on a port of Ray's workers, and to the head on its own; so both directions of every pair are tried.
Nothing is installed, and nothing stays. Machines of a cloud that are not up cannot be tried: of
pools of kind ec2, EC2 is asked whether what they name is there (`ec2_check`).
"""

from __future__ import annotations

import ipaddress
import json
import select
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from secrets import token_hex
from typing import Any

from rayburst.errors import PoolUnreachableError, SpecError
from rayburst.fleet import probe
from rayburst.fleet.cluster import PORTS
from rayburst.fleet.ec2_check import check_ec2
from rayburst.fleet.kindspec import SshSpec
from rayburst.fleet.pools.ssh_host import SshMachine
from rayburst.fleet.ship import STORE_KEYS
from rayburst.fleet.spec import HEAD, FleetSpec, Shape

CLOCK_S = 1.0
"""How far a machine's clock may be from the others': notices and leases are compared by it."""
_ANSWER_S = 60.0
_MEMORY_SLACK = 0.9  # a kernel keeps some of what a machine has
Wrap = Callable[[list[str]], list[str]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Find:
    """One thing that was tried on one machine.

    Attributes:
        host: the machine, or the pool that EC2 was asked about.
        probe: "ssh", "clock", "versions", "shape", "store", "network" or "port"; "image",
            "subnets", "types" or "security groups" of an ec2 pool.
        said: what was seen, in words.
        wrong: why it will not do, and what would; empty when it will.
    """

    host: str
    probe: str
    said: str
    wrong: str = ""


@dataclass(kw_only=True)
class _Machine:
    """A machine that is being tried. `facts` is what it told; `failed` why it told nothing."""

    name: str
    address: str
    command: list[str]
    shape: Shape | None
    ports: Sequence[int]
    process: subprocess.Popen[str] | None = None
    offset_s: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)
    failed: str = ""

    def ask(self, document: object) -> Any:
        """One document to it, and its answer. Raises PoolUnreachableError."""
        try:
            if self.process is None or self.process.stdin is None:
                raise PoolUnreachableError("it was never reached")
            self.process.stdin.write(json.dumps(document) + "\n")
            self.process.stdin.flush()
            return self._hear()
        except (OSError, ValueError) as error:
            raise PoolUnreachableError(self._why() or str(error)) from None

    def _hear(self) -> Any:
        if self.process is None or self.process.stdout is None:
            raise PoolUnreachableError("it was never reached")
        if not select.select([self.process.stdout], [], [], _ANSWER_S)[0]:
            raise PoolUnreachableError(f"it does not answer within {_ANSWER_S:.0f} s")
        if not (line := self.process.stdout.readline()):
            raise PoolUnreachableError(self._why())
        return json.loads(line)

    def _why(self) -> str:
        if self.process is None or self.process.stderr is None:
            return ""
        self.process.kill()
        said = self.process.stderr.read().strip().splitlines()
        return said[-1] if said else "it ended without a word"


def check_live(spec: FleetSpec, *, environment: Mapping[str, str], wrap: Wrap = list) -> list[Find]:
    """Try every machine of a fleet file, and ask EC2 of its pools there.

    Args:
        environment: where the keys of the object store are looked for. Credentials for EC2 are
            those of this process.
        wrap: changes the `ssh` commands, for networks that only a box can reach.

    Raises:
        SpecError: the file names no machine.
    """
    machines = list(_machines(spec))
    cloud = [
        Find(host=pool.name, probe=asked.about, said=asked.said, wrong=asked.wrong)
        for pool in spec.pools
        for asked in check_ec2(pool, spec.network)
    ]
    if not machines and not cloud:
        raise SpecError(
            f"fleet {spec.name!r} names no machine that can be tried: none for its head "
            f"(`head: {{ssh: {{host: 10.0.0.6, user: ray}}}}`) and none in a pool of kind ssh"
        )
    word = token_hex(8)
    env = {key: environment[key] for key in STORE_KEYS if key in environment}
    if endpoint := spec.object_store.endpoint:
        env |= {"AWS_ENDPOINT_URL": endpoint, "AWS_ALLOW_HTTP": "true"}
    orders = {"word": word, "store": spec.object_store.uri, "environment": env}
    with ThreadPoolExecutor(max_workers=32) as pool:
        try:
            list(pool.map(lambda one: _begin(one, orders, wrap), machines))
            answers = list(pool.map(lambda one: _reach(one, machines), machines))
        finally:
            for machine in machines:
                _end(machine)
    pairs = zip(machines, answers, strict=True)
    return [find for one, told in pairs for find in (*_finds(spec, one), *told)] + cloud


def summary(finds: Sequence[Find]) -> list[tuple[str, str, str]]:
    """Machine, what was tried and what was found, the ways to others counted."""
    rows = [(f.host, f.probe, f.wrong or f.said) for f in finds if f.probe != "port"]
    for host in dict.fromkeys(find.host for find in finds):
        ways = [find for find in finds if find.host == host and find.probe == "port"]
        shut = sum(bool(find.wrong) for find in ways)
        if ways:
            rows.append((host, "ports", f"{len(ways) - shut} of {len(ways)} ways open"))
    return sorted(rows, key=lambda row: row[0])


def _machines(spec: FleetSpec) -> Iterator[_Machine]:
    """The head and the machines of ssh pools, each once."""
    python = spec.software.python
    source = shlex.quote(Path(probe.__file__).read_text())
    # before `ray up` has set it up, the machine's own Python tells what it can
    start = f"p={python}; test -x $p || p=python3; exec $p -u -c {source}"
    seen = set()
    if (head := spec.head.ssh) is not None:
        ssh = SshSpec(
            hosts=(head.host,), user=head.user, key=head.key, known_hosts=head.known_hosts
        )
        command = SshMachine(head.host, ssh).command(start)
        ports = (PORTS["gcs"],)
        seen.add(head.host)
        yield _Machine(name=HEAD, address=head.ip, command=command, shape=None, ports=ports)
    for pool in spec.pools:
        for host in pool.ssh.hosts if pool.ssh is not None else ():
            if pool.ssh is not None and host not in seen:
                seen.add(host)
                command = SshMachine(host, pool.ssh).command(start)
                yield _Machine(
                    name=f"{pool.name} {host}",
                    address=host,
                    command=command,
                    shape=pool.shape,
                    ports=(),
                )


def _begin(machine: _Machine, orders: Mapping[str, Any], wrap: Wrap) -> None:
    pipe = subprocess.PIPE
    machine.process = subprocess.Popen(
        wrap(machine.command), stdin=pipe, stdout=pipe, stderr=pipe, text=True
    )
    try:
        named = {**orders, "name": machine.name, "ports": list(machine.ports)}
        machine.facts = machine.ask(named)
        before = time.time()
        told = machine.ask([])  # a round trip and no more
        machine.offset_s = float(told["time"]) - (before + time.time()) / 2
    except PoolUnreachableError as error:
        machine.failed = str(error)


def _reach(machine: _Machine, machines: Sequence[_Machine]) -> list[Find]:
    """What it finds of all the others."""
    if machine.failed:
        return []
    peers = [
        {"name": other.name, "address": other.address, "port": port, "echoes": echoes}
        for other in machines
        if other is not machine and not other.failed
        for port, echoes in _ports(other)
    ]
    try:
        told = machine.ask(peers)["reached"]
    except PoolUnreachableError as error:
        return [Find(host=machine.name, probe="port", said="", wrong=str(error))]
    finds = []
    for peer, why in zip(peers, told, strict=True):
        said = f"to {peer['name']} port {peer['port']}"
        wrong = f"{said}: {why}; Ray needs this way open" if why else ""
        finds.append(Find(host=machine.name, probe="port", said=said, wrong=wrong))
    return finds


def _ports(machine: _Machine) -> list[tuple[int, bool]]:
    """Ports on which it should answer, and whether our own probe does."""
    worker = [(int(machine.facts["port"]), True)] if machine.facts["port"] else []
    return worker + [(port, port in machine.facts["echoing"]) for port in machine.ports]


def _end(machine: _Machine) -> None:
    if machine.process is None:
        return
    for pipe in (machine.process.stdin, machine.process.stdout, machine.process.stderr):
        if pipe is not None:
            try:
                pipe.close()
            except OSError:
                continue  # what it had left to say went with the connection
    try:
        machine.process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        machine.process.kill()
        machine.process.wait()


def _finds(spec: FleetSpec, machine: _Machine) -> Iterator[Find]:
    def find(probe: str, said: str, wrong: str = "") -> Find:
        return Find(host=machine.name, probe=probe, said=said, wrong=wrong)

    if machine.failed:
        yield find("ssh", "", f"cannot be tried over SSH: {machine.failed}")
        return
    yield find("ssh", "answers")
    yield find(
        "clock",
        f"{machine.offset_s:+.2f} s from this machine's",
        f"its clock is {machine.offset_s:+.1f} s from this machine's; let both follow NTP"
        if abs(machine.offset_s) > CLOCK_S
        else "",
    )
    yield _versions(machine, find)
    if machine.shape is not None:
        yield find("shape", _has(machine), _lacks(machine, machine.shape))
    yield _store(spec, machine, find)
    if spec.network is not None:
        yield find("network", machine.address, _outside(spec, machine))


def _versions(machine: _Machine, find: Callable[..., Find]) -> Find:
    told = machine.facts["versions"]
    said = ", ".join(f"{name} {one or 'missing'}" for name, one in told.items())
    wrong = []
    if told["ray"] and told["ray"] != version("ray"):
        wrong.append(f"Ray {told['ray']}, here {version('ray')}")
    mine = ".".join(map(str, sys.version_info[:2]))
    if not told["python"].startswith(f"{mine}."):
        wrong.append(f"Python {told['python']}, here {mine}")
    text = f"{'; '.join(wrong)}: a cluster has one version of each" if wrong else ""
    return find("versions", said, text)


def _has(machine: _Machine) -> str:
    facts = machine.facts
    gib = facts["memory_bytes"] / 2**30
    return f"{facts['cpus']} CPUs, {gib:.0f} GiB, {facts['gpus']} GPUs"


def _lacks(machine: _Machine, shape: Shape) -> str:
    wanted = {"cpus": shape.cpus, "gpus": shape.gpus}
    wanted["memory_bytes"] = int(shape.memory_bytes * _MEMORY_SLACK)
    short = [
        f"{machine.facts[what]} of {least} {what.replace('_', ' of ')}"
        for what, least in wanted.items()
        if machine.facts[what] < least
    ]
    return f"has {', '.join(short)} that `shape` says" if short else ""


def _store(spec: FleetSpec, machine: _Machine, find: Callable[..., Find]) -> Find:
    why = machine.facts["store"]
    if why is None:
        return find("store", "not tried: rayburst is not installed there yet")
    return find("store", f"{spec.object_store.uri} written, read, removed", why)


def _outside(spec: FleetSpec, machine: _Machine) -> str:
    """Why a machine's address is not where `network` says."""
    if spec.network is None:
        return ""
    address = ipaddress.ip_address(machine.address)
    ranges = (*spec.network.on_prem, *spec.network.cloud)
    if any(address in ipaddress.ip_network(one) for one in ranges):
        return ""
    return f"{address} is in none of the ranges of `network`: {', '.join(ranges)}"
