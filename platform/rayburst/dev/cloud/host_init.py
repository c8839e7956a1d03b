"""The first process of a host in a box: sets the host up, starts its sshd, reaps what is orphaned.

Run by `box_init` inside the host's namespaces, with the box's folder and the host's name, address
(with its network's prefix length), gateway and further address as JSON. Says `here`, waits for its
network, says `up` when its sshd answers. SIGTERM, and `/run/bin/shutdown` on the host, ends it as a
machine's shutdown does: its processes have a moment to end by themselves.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from rayburst.dev.cloud.box_init import ip
from rayburst.errors import StartError

_KEPT = Path("/run/box")
_HOME = Path("/run/home")
_BIN = Path("/run/bin")
SHUTDOWN_S = 3.0
_SSHD = """\
Port 22
ListenAddress {address}
HostKey /run/box/host_key
AuthorizedKeysFile /run/box/key.pub
PermitRootLogin prohibit-password
PasswordAuthentication no
UsePAM no
StrictModes no
PidFile none
"""


def main(folder: Path, name: str, address: str, gateway: str, also: str) -> None:
    own = address.partition("/")[0]
    kept = {file: (folder / file).read_bytes() for file in ("host_key", "key.pub")}
    signal.signal(signal.SIGTERM, _shut_down)  # `shutdown` on the host, or from outside
    _say("here")
    sys.stdin.readline()
    socket.sethostname(name)
    _mounts(kept, name, own)
    ip("link", "set", "lo", "up")
    if also:
        ip("addr", "add", also, "dev", "lo")
    ip("addr", "add", address, "dev", "eth0")
    ip("link", "set", "eth0", "up")
    ip("route", "add", "default", "via", gateway)
    (_KEPT / "sshd_config").write_text(_SSHD.format(address=own))
    sshd = subprocess.Popen(
        ["/usr/sbin/sshd", "-D", "-e", "-f", str(_KEPT / "sshd_config")],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    _wait_for(own, sshd)
    _say("up")
    while True:
        ended, _ = os.wait()
        if ended == sshd.pid:
            raise StartError(f"the sshd of host {name} ended")


def _shut_down(*_: object) -> None:
    """Ask every process to end, wait a little, and take the rest along."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(-1, signal.SIGTERM)
    deadline = time.monotonic() + SHUTDOWN_S
    while time.monotonic() < deadline:
        try:
            ended = os.waitpid(-1, os.WNOHANG)[0]
        except ChildProcessError:
            break  # orphans are children too: nobody is left
        if ended == 0:
            time.sleep(0.05)
    os._exit(0)


def _mounts(kept: dict[str, bytes], name: str, address: str) -> None:
    """What is the host's own. All else is this machine's, seen through."""
    _mount("-t", "proc", "proc", "/proc")
    for place in ("/tmp", "/run", "/dev/shm"):
        _mount("-t", "tmpfs", "-o", "mode=1777" if place != "/run" else "mode=755", "tmpfs", place)
    for folder in (_KEPT, _HOME, Path("/run/sshd"), _BIN):
        folder.mkdir(mode=0o700)
    (_BIN / "shutdown").write_text("#!/bin/sh\nkill -TERM 1\n")
    (_BIN / "shutdown").chmod(0o755)
    for key, content in kept.items():
        (_KEPT / key).write_bytes(content)
        (_KEPT / key).chmod(0o600)
    lines = Path("/etc/passwd").read_text().splitlines()
    users = [line for line in lines if not line.startswith("root:")]
    own = {
        "/etc/passwd": "\n".join([f"root:x:0:0:root:{_HOME}:/bin/bash", *users, ""]),
        "/etc/hosts": f"127.0.0.1 localhost\n{address} {name}\n",
    }
    for place, text in own.items():
        file = _KEPT / Path(place).name
        file.write_text(text)
        _mount("--bind", str(file), place)
    # `ray up` runs its commands through a login shell, whose PATH is the system's own
    path = f'export PATH="{Path(sys.executable).parent}:{_BIN}:$PATH"\n'
    (_HOME / ".profile").write_text(path)
    (_HOME / ".bashrc").write_text(path)


def _mount(*words: str) -> None:
    done = subprocess.run(["mount", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise StartError(f"mount {' '.join(words)}: {done.stderr.strip()}")


def _wait_for(address: str, sshd: subprocess.Popen[bytes]) -> None:
    while sshd.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex((address, 22)) == 0:
                return
        time.sleep(0.05)
    raise StartError(f"sshd did not start: it ended with {sshd.returncode}")


def _say(word: str) -> None:
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), **json.loads(sys.argv[2]))
