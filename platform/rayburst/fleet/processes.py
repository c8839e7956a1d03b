"""Own what was started: find and end the processes of one fleet, and nothing else.

Every process of a fleet inherits `RAYBURST_OWNER=<fleet folder>` and, on a host,
`RAYBURST_HOST=<host id>` in its environment. The mark is read back from the operating system, so a
fleet can be ended after its state file was lost, and a process that left its session is still
found. `rayburst env` never exports the marks: a user's shell is never owned.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import psutil

from rayburst.errors import StartError

OWNER_VARIABLE = "RAYBURST_OWNER"
HOST_VARIABLE = "RAYBURST_HOST"

# Popen complains when it is collected before its process ended; these are ended by their mark.
_started: list[subprocess.Popen[bytes]] = []


def spawn(command: Sequence[str], *, env: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
    """Start `command` in a session of its own, its output appended to `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as out:
        process = subprocess.Popen(
            list(command),
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    _started.append(process)
    return process


def owned(owner: Path, *, host: str | None = None) -> list[psutil.Process]:
    """Living processes that carry the fleet's mark (and the host's, if given); never the caller."""
    spared = {os.getpid(), *(p.pid for p in psutil.Process().parents())}
    found = []
    for process in psutil.process_iter():
        if process.pid in spared:
            continue
        # one that ends meanwhile, or belongs to another user, is not ours to count
        with contextlib.suppress(psutil.Error):
            env = process.environ()
            mine = env.get(OWNER_VARIABLE) == str(owner)
            if mine and (host is None or env.get(HOST_VARIABLE) == host) and alive(process):
                found.append(process)
    return found


def alive(process: psutil.Process) -> bool:
    """Whether a process runs; a zombie that waits for its parent does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def alive_pid(pid: int, created: float | None) -> bool:
    """Whether `pid` is still the process that was started at `created` (unix seconds)."""
    try:
        process = psutil.Process(pid)
        same = created is None or abs(process.create_time() - created) < 1.0
    except psutil.Error:
        return False
    return same and alive(process)


def end(processes: Iterable[psutil.Process], *, grace_s: float = 5.0) -> list[psutil.Process]:
    """Ask with SIGTERM, insist with SIGKILL after `grace_s`; returns what survived."""
    waiting = list(processes)
    if grace_s > 0:
        _signal_all(waiting, signal.SIGTERM)
        waiting = _wait(waiting, timeout_s=grace_s)
    _signal_all(waiting, signal.SIGKILL)
    return _wait(waiting, timeout_s=10)


def cut(owner: Path, host: str) -> int:
    """Cut the power of a host: SIGKILL all that runs on it. Returns how many were killed."""
    killed = 0
    while processes := owned(owner, host=host):
        _signal_all(processes, signal.SIGKILL)
        _wait(processes, timeout_s=5)
        killed += len(processes)
    return killed


def _wait(processes: Iterable[psutil.Process], *, timeout_s: float) -> list[psutil.Process]:
    """Wait for the end of processes, zombies count as ended; returns those that still run."""
    deadline = time.monotonic() + timeout_s
    while (running := [p for p in processes if alive(p)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    _started[:] = [child for child in _started if child.poll() is None]  # reaps our own
    return running


def _signal_all(processes: Iterable[psutil.Process], signum: int) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signum)


def free_ports(count: int, address: str = "127.0.0.1") -> list[int]:
    """Ports that were free a moment ago, all different, outside Ray's worker range 10002-19999."""
    with contextlib.ExitStack() as stack:
        ports: list[int] = []
        while len(ports) < count:
            probe = stack.enter_context(socket.socket())
            probe.bind((address, 0))
            port = int(probe.getsockname()[1])
            # SeaweedFS adds 10000 to a port for its gRPC twin
            if not 10002 <= port <= 19999 and port < 55000:
                ports.append(port)
        return ports


@contextlib.contextmanager
def held(endpoints: Iterable[tuple[str, int]]) -> Iterator[None]:
    """Keep ports for servers that are about to listen on them: the kernel gives them to nobody.

    A server can bind them meanwhile if it sets SO_REUSEADDR, as most do. Raises StartError for one
    that is taken.
    """
    with contextlib.ExitStack() as stack:
        for address, port in endpoints:
            holder = stack.enter_context(socket.socket())
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                holder.bind((address, port))
            except OSError as error:
                raise StartError(
                    f"port {port} of {address} is taken; see who has it with "
                    f"`ss -ltnp 'sport = :{port}'`, or try again for others that are free"
                ) from error
        yield


def listening(address: str, port: int) -> bool:
    """Whether something accepts connections at `address:port`."""
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex((address, port)) == 0


def wait_until_closed(
    endpoints: Iterable[tuple[str, int]], *, timeout_s: float
) -> list[tuple[str, int]]:
    """Wait for ports to close; returns those that still answer after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    still = list(endpoints)
    while still and time.monotonic() < deadline:
        still = [e for e in still if listening(*e)]
        if still:
            time.sleep(0.1)
    return still
