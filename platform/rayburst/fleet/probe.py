"""What `rayburst fleet check --live` runs on every machine. Sent there as text; needs Python only.

It reads one JSON document a line and answers each with one: orders first, answered with what the
machine has; then lists of peers, to each of which it connects, answered with its clock too. It
listens until its input ends. Where rayburst is installed the object store is tried. It imports
nothing of rayburst before that, since it may not be there.
"""

from __future__ import annotations

import json
import os
import platform
import socket
import subprocess
import sys
import threading
import time
from typing import Any

WORKER_PORTS = range(10002, 10102)
CONNECT_S = 3.0
NAMES = ("ray", "torch", "rayburst")


def say(answer: object) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def listen(port: int, word: str) -> bool:
    """Answer on a port with a word; False when it is taken."""
    try:
        server = socket.create_server(("", port))
    except OSError:
        return False

    def serve() -> None:
        while True:
            peer, _ = server.accept()
            with peer:
                peer.sendall(word.encode())

    threading.Thread(target=serve, daemon=True).start()
    return True


def versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for name in NAMES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = ""
    return found


def gpus() -> int:
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in done.stdout.splitlines())


def store(orders: dict[str, Any]) -> str | None:
    """Why the object store cannot be used; empty when it can, None where rayburst is missing."""
    os.environ.update(orders["environment"])
    try:
        from rayburst.checkpoint.store import ObjectStore, StoreOptions
        from rayburst.errors import StoreError
    except ImportError:
        return None
    key, word = f"check/{orders['name'].replace(' ', '-')}", orders["word"].encode()
    brief = StoreOptions(retries=1, retry_s=5.0, request_timeout_s=5.0, connect_timeout_s=3.0)
    try:
        opened = ObjectStore.open(orders["store"], brief)
        opened.put(key, word)
        same = opened.get(key) == word
        opened.delete(key)
    except StoreError as error:
        return str(error)
    return "" if same else "it gave back other bytes than were put"


def reach(peer: dict[str, Any], word: str) -> str:
    """Why a peer's port does not answer; empty when it does."""
    try:
        with socket.create_connection((peer["address"], peer["port"]), timeout=CONNECT_S) as one:
            one.settimeout(CONNECT_S)
            if not peer["echoes"] or one.recv(64).decode() == word:
                return ""
            return "somebody else answers"
    except OSError as error:
        return str(error)


def main() -> None:
    orders = json.loads(sys.stdin.readline())
    port = next((one for one in WORKER_PORTS if listen(one, orders["word"])), 0)
    echoing = [one for one in orders["ports"] if listen(one, orders["word"])]
    say(
        {
            "port": port,
            "echoing": echoing,
            "versions": versions(),
            "cpus": os.cpu_count(),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "gpus": gpus(),
            "store": store(orders),
        }
    )
    for line in sys.stdin:
        peers = json.loads(line)
        reached = [reach(peer, orders["word"]) for peer in peers]
        say({"time": time.time(), "reached": reached})


if __name__ == "__main__":
    main()
