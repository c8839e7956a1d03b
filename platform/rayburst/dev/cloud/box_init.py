"""The first process of a box: its router. Takes orders on stdin, answers each with one line.

Run by `box.Box` inside the box's namespaces. When its input ends it ends too, and the kernel ends
every process of the box with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from rayburst.dev.cloud.box import FIRST, METADATA, NETWORKS, network_of, router_address
from rayburst.errors import StartError


def ip(*words: str) -> None:
    """Run `ip`. Raises StartError with what it said."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise StartError(f"ip {' '.join(words)}: {done.stderr.strip()}")


class Router:
    """The box's networks and the first processes of its hosts."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._hosts: dict[str, tuple[int, str]] = {}
        self._links = 0

    def networks(self) -> dict[str, Any]:
        """One bridge a network, and the way from one to the other."""
        ip("link", "set", "lo", "up")
        for name in NETWORKS:
            ip("link", "add", name, "type", "bridge")
            ip("addr", "add", f"{router_address(name)}/{network_of(name).prefixlen}", "dev", name)
            ip("link", "set", name, "up")
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        return {}

    def start(self, name: str, network: str, address: str) -> dict[str, Any]:
        """A host, with a cable to its network's bridge."""
        self._links += 1
        link = f"host{self._links}"
        facts = {
            "name": name,
            "address": f"{address}/{network_of(network).prefixlen}",
            "gateway": router_address(network),
            "also": f"{METADATA}/32" if network == "cloud" else "",
        }
        module = (sys.executable, "-m", "rayburst.dev.cloud.host_init")
        with (self._folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [*FIRST, *module, str(self._folder), json.dumps(facts)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        if process.stdin is None or process.stdout is None:
            raise StartError("a host has no pipes")
        if process.stdout.readline().strip() != "here":
            raise StartError(f"host {name} did not come to life")
        pid = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text())
        ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", str(pid))
        ip("link", "set", link, "master", network, "up")
        process.stdin.write("wired\n")
        process.stdin.flush()
        if process.stdout.readline().strip() != "up":
            raise StartError(f"host {name} did not come up")
        self._hosts[name] = (pid, link)
        return {}

    def power(self, name: str) -> dict[str, Any]:
        """The end of a host, without a word to its processes."""
        pid, link = self._hosts.pop(name)
        with contextlib.suppress(ProcessLookupError):  # it may have ended by itself
            os.kill(pid, 9)
        with contextlib.suppress(StartError):  # the cable goes with the host's network
            ip("link", "delete", link)
        return {}

    def link(self, name: str, state: str) -> dict[str, Any]:
        """A host's cable, in or out."""
        ip("link", "set", self._hosts[name][1], state)
        return {}

    def pid(self, name: str | None) -> dict[str, Any]:
        """The first process of a host, or of the box."""
        return {"pid": os.getpid() if name is None else self._hosts[name][0]}


def main(folder: Path) -> None:
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    router = Router(folder)
    for line in sys.stdin:
        order = json.loads(line)
        try:
            reply = getattr(router, order.pop("do"))(**order)
        except KeyError as error:
            reply = {"error": f"the box has no host {error}"}
        except (StartError, OSError, ValueError) as error:
            reply = {"error": str(error)}
        sys.stdout.write(json.dumps(reply) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
