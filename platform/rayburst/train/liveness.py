"""Which nodes answer right now: a TCP connection to each raylet, all at once.

Ray's head calls a node dead after about 15 s without an answer. A restart cannot wait that long,
and must not place workers on a machine that is gone. A closed port says so at once, a machine
without power by the time-out. The module knows no Ray: it takes addresses.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

__all__ = ["connects", "unreachable"]

_AT_ONCE = 32


def unreachable(
    addresses: Mapping[str, tuple[str, int]],
    timeout_s: float,
    answers: Callable[[str, int, float], bool] | None = None,
) -> set[str]:
    """The names in `addresses` ({name: (host, port)}) that do not answer within `timeout_s`."""
    if not addresses:
        return set()
    probe = answers or connects
    with ThreadPoolExecutor(min(_AT_ONCE, len(addresses))) as pool:
        alive = pool.map(lambda at: probe(at[0], at[1], timeout_s), addresses.values())
        return {name for name, ok in zip(addresses, alive, strict=True) if not ok}


def connects(host: str, port: int, timeout_s: float) -> bool:
    """Whether something accepts connections at `host:port`."""
    try:
        with socket.create_connection((host, port), timeout=timeout_s):
            return True
    except OSError:
        return False
