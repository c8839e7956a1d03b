"""What HAProxy is told of applications whose requests may be asked again, and what it tells. Pure.

    config = with_retries(serves_own_config, {"http-lm": True}, node="3f2c91ab")
    pid, retries = count_retries(answer_to_SHOW)

The directives are those of HAProxy 2.8 (docs.haproxy.org/2.8/configuration.html, `retry-on`).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping

__all__ = ["ARRIVED", "SHOW", "count_retries", "with_retries"]

ARRIVED = "x-rayburst-arrived"  # NODE/UNIX-MILLISECONDS, written by HAProxy over what a client says
SHOW = "show info;show stat"

# A node without power closes nothing, and Serve's HAProxy waits for it without end: probes find
# that out in some 5 s.
_PROBES = """\
    option srvtcpka
    srvtcpka-idle 2s
    srvtcpka-intvl 1s
    srvtcpka-cnt 3
"""
# A retry needs the whole request in HAProxy's buffer, so its body is awaited there, for the 20 s
# that a replica would give it. `redispatch 1`, Serve's own, takes another replica each time.
_RETRIES = """\
    # idempotent: what a dead replica held is asked again of another (rayburst)
    option http-buffer-request
    timeout http-request 20s
    option redispatch 1
    retry-on conn-failure empty-response
    http-request set-header {arrived} {node}/%[date(0,ms)]
"""


def with_retries(config: str, backends: Mapping[str, bool], *, node: str) -> str:
    """Serve's configuration with probes in these backends, and retries where the value is true.

    ValueError for a backend that the configuration has not, or has twice.
    """
    for backend, is_retried in sorted(backends.items()):
        head = f"\nbackend {backend}\n"
        if config.count(head) != 1:
            raise ValueError(
                f"HAProxy's configuration has {config.count(head)} backends {backend!r}, not one: "
                "no request is asked again"
            )
        retries = _RETRIES.format(arrived=ARRIVED, node=node) if is_retried else ""
        config = config.replace(head, head + _PROBES + retries)
    return config


def count_retries(told: str) -> tuple[str, dict[str, int]]:
    """HAProxy's process and how often each of its backends asked again, from its answer to SHOW."""
    info, _, stats = told.partition("# pxname")
    (pid,) = (line[4:].strip() for line in info.splitlines() if line.startswith("Pid:"))
    rows = csv.DictReader(io.StringIO("pxname" + stats))
    return pid, {
        row["pxname"]: int(row["wretr"] or 0) for row in rows if row["svname"] == "BACKEND"
    }
