"""A cloud in a box: hosts with a network, an sshd and processes of their own, on this machine.

    with Box(folder) as box:
        host = box.start_host("rack-1", network="onprem")
        box.run(host.ssh("hostname"))               # from the router, over SSH
        box.cut_network("rack-1")
        box.cut_power("rack-1")

A host is a set of Linux namespaces (processes, network, mounts, names, IPC): it sees this
machine's software, but has its own addresses, `/tmp`, `/run`, `/dev/shm` and home, and no process
outside of it. Hosts lie in two networks, `onprem` (10.77.1.0/24) and `cloud` (10.77.128.0/17),
behind one router, which has the first address of each. Hosts of the cloud have 169.254.169.254 too,
for the metadata service that `cloud.py` gives them. All of it lives inside one process-id namespace
whose first process ends when whoever made the box does, however that ends: nothing stays, on this
machine's network neither.

Needs Linux, root, and the commands `unshare`, `nsenter`, `ip`, `sshd` and `ssh`. It knows no Ray.
"""

from __future__ import annotations

import contextlib
import ipaddress
import itertools
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

import rayburst
from rayburst.errors import FleetBrokenError, StartError
from rayburst.fleet import processes

NETWORKS = {"onprem": "10.77.1", "cloud": "10.77.128"}
_PREFIXES = {"onprem": 24, "cloud": 17}
METADATA = "169.254.169.254"
COMMANDS = ("unshare", "nsenter", "ip", "mount", "sshd", "ssh", "ssh-keygen")
NAMESPACES = ("--pid", "--mount", "--net", "--uts", "--ipc", "--fork", "--propagation", "private")
FIRST = ("unshare", *NAMESPACES, "--kill-child=KILL")
_START_S = 60.0
_HIDDEN = (Path("/tmp"), Path("/run"), Path("/dev/shm"))


def why_not() -> str | None:
    """Why this machine cannot hold a box; None when it can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "a cloud in a box needs Linux and root: it makes namespaces and networks"
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    missing = [command for command in COMMANDS if shutil.which(command, path=path) is None]
    if missing:
        return (
            f"a cloud in a box needs the commands {', '.join(missing)} (openssh-server, iproute2)"
        )
    used = (sys.prefix, sys.base_prefix, rayburst.__path__[0])
    for place in map(Path, used):
        if any(place.resolve().is_relative_to(hidden) for hidden in _HIDDEN):
            return f"hosts of a box have a /tmp of their own, and {place} is needed in them"
    probe = subprocess.run(["unshare", *NAMESPACES, "true"], capture_output=True, check=False)
    return None if probe.returncode == 0 else "this machine does not allow namespaces"


@dataclass(frozen=True, kw_only=True, slots=True)
class BoxHost:
    """One host that runs. Its root user takes the box's key, `folder/key`."""

    name: str
    network: str
    address: str
    folder: Path

    def ssh(self, *words: str) -> list[str]:
        """The command that runs words on the host by SSH; give it to `Box.run`."""
        options = {
            "UserKnownHostsFile": str(self.folder / "known_hosts"),
            "StrictHostKeyChecking": "yes",
            "BatchMode": "yes",
            "ConnectTimeout": "5",
        }
        given = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
        return ["ssh", "-i", str(self.folder / "key"), *given, f"root@{self.address}", *words]


class Box:
    """One box; `folder` holds its keys and logs. Use it as a context.

    Attributes:
        at_end: what is called once all processes of the box have ended.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.hosts: dict[str, BoxHost] = {}
        self._process: subprocess.Popen[str] | None = None
        # addresses of hosts that name none: from the tenth of a network's last subnet on
        self._free = {name: _last_subnet(network_of(name)) for name in NETWORKS}
        self._asking = threading.Lock()
        self.at_end = contextlib.ExitStack()

    def __enter__(self) -> Self:
        if (reason := why_not()) is not None:
            raise StartError(reason)
        self.folder.mkdir(parents=True, exist_ok=True)
        _make_keys(self.folder)
        module = (sys.executable, "-m", "rayburst.dev.cloud.box_init")
        with (self.folder / "box.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*FIRST, "--mount-proc", *module, str(self.folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, processes.OWNER_VARIABLE: str(self.folder)},
            )
        self._ask({"do": "networks"})
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all hosts and the box. Raises FleetBrokenError when something is left."""
        if self._process is None:
            return
        process, self._process = self._process, None
        self.hosts.clear()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()  # its first process ends, and with it all others
        process.wait(timeout=_START_S)
        self.at_end.close()
        if left := processes.owned(self.folder):
            raise FleetBrokenError(f"left behind by the box in {self.folder}: {left}")

    def start_host(self, name: str, *, network: str, address: str | None = None) -> BoxHost:
        """Start a host; returns when its sshd answers. Raises StartError.

        Args:
            address: in the network; a free one when left out.
        """
        if self._process is None:
            raise StartError(_CLOSED)
        if name in self.hosts:
            raise StartError(f"the box has a host {name!r} already")
        if network not in NETWORKS:
            raise StartError(f"no network {network!r} in the box; it has {', '.join(NETWORKS)}")
        address = address or str(next(self._free[network]))
        host = BoxHost(name=name, network=network, address=address, folder=self.folder)
        key = (self.folder / "host_key.pub").read_text()
        with (self.folder / "known_hosts").open("a") as known:
            known.write(f"{address} {key}")
        self._ask({"do": "start", "name": name, "network": network, "address": address})
        self.hosts[name] = host
        return host

    def cut_power(self, name: str) -> None:
        """SIGKILL of the host's first process: every process of it is gone at once."""
        self._ask({"do": "power", "name": name})
        self.hosts.pop(name, None)

    def cut_network(self, name: str) -> None:
        """Take the host's link down; it runs on, alone."""
        self._ask({"do": "link", "name": name, "state": "down"})

    def mend_network(self, name: str) -> None:
        """Bring the host's link up again."""
        self._ask({"do": "link", "name": name, "state": "up"})

    def inside(self, command: Sequence[str], *, host: str | None = None) -> list[str]:
        """The command that runs another at the router, or on a host without SSH."""
        return enter(self.pid(host), command)

    def pid(self, host: str | None = None) -> int:
        """The first process of a host, or of the box: its router."""
        pid: int = self._ask({"do": "pid", "name": host})["pid"]
        return pid

    def run(self, command: Sequence[str], **how: Any) -> subprocess.CompletedProcess[str]:
        """Run a command at the router and wait for it; `how` goes to `subprocess.run`."""
        how = {"capture_output": True, "text": True, "check": True, "timeout": 60, **how}
        return subprocess.run(self.inside(command), **how)

    def _ask(self, order: dict[str, Any]) -> dict[str, Any]:
        """One order to the box's first process, and its answer; one thread at a time."""
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            raise StartError(_CLOSED)
        try:
            with self._asking:
                process.stdin.write(json.dumps(order) + "\n")
                process.stdin.flush()
                line = process.stdout.readline()
        except (BrokenPipeError, ValueError):  # it ended, or was closed meanwhile
            line = ""
        if not line:
            raise FleetBrokenError(f"the box has ended; see {self.folder / 'box.log'}")
        reply: dict[str, Any] = json.loads(line)
        if why := reply.get("error"):
            raise StartError(f"{order['do']}: {why}; see {self.folder}/*.log")
        if "pid" in reply:
            reply["pid"] = _outside(process.pid, reply["pid"])
        return reply


def enter(pid: int, command: Sequence[str]) -> list[str]:
    """The command that runs another in the namespaces of a process."""
    return ["nsenter", f"--target={pid}", *_ENTER, *command]


def network_of(name: str) -> ipaddress.IPv4Network:
    """All addresses of one of the box's networks."""
    return ipaddress.IPv4Network(f"{NETWORKS[name]}.0/{_PREFIXES[name]}")


def router_address(network: str) -> str:
    """The router's address in a network: what its hosts reach the rest of the world by."""
    return f"{NETWORKS[network]}.1"


def _last_subnet(network: ipaddress.IPv4Network) -> Iterator[ipaddress.IPv4Address]:
    """Addresses that no subnet of the EC2 endpoint has (it makes /20 ones, from the first on)."""
    last = list(network.subnets(new_prefix=max(20, network.prefixlen)))[-1]
    return itertools.islice(last.hosts(), 10, None)


_CLOSED = "the box is not open; use it as `with Box(folder) as box:`"
_ENTER = ("--pid", "--mount", "--net", "--uts", "--ipc", "--")


def _outside(ancestor: int, inner: int) -> int:
    """The pid out here of the box's process `inner`: namespaces number their own processes."""
    for process in psutil.Process(ancestor).children(recursive=True):
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended while we looked
        (line,) = (one for one in status.splitlines() if one.startswith("NSpid:"))
        numbers = line.split()[1:]
        if len(numbers) > 1 and int(numbers[1]) == inner:
            return process.pid
    raise FleetBrokenError(f"the box has no process {inner} any more")


def _make_keys(folder: Path) -> None:
    """One key for root's logins, one for all hosts."""
    for name in ("key", "host_key"):
        if not (folder / name).exists():
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
            subprocess.run(command, check=True, timeout=60)
    (folder / "known_hosts").touch()
