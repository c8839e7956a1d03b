"""How long Ray waits on a connection that fell silent; alike in all processes. Pure.

    ray start --head ... --system-config='{"grpc_client_keepalive_time_ms": 20000, ...}'

A machine that hangs, or loses its power or its network, closes no connection. Whoever has called
there waits for gRPC to give the connection up, after seven minutes by Ray's defaults: so long is a
plain task that ran there not retried, though Ray itself gives the node up in less than one. After
`grpc_client_keepalive_time_ms` without a word gRPC asks whether the other side lives, and gives it
`grpc_client_keepalive_timeout_ms` to answer: together the 50 s of Ray's own health checks (five of
10 s), so that a machine that only paused keeps its calls for as long as it keeps its node.

All processes must agree: a server takes so many questions as its own setting allows, and closes the
connection of a client that asks more often. The head's `--system-config` reaches all of them,
drivers too; pods of one manifest have one environment.
"""

from __future__ import annotations

import json

SYSTEM_CONFIG = {
    "grpc_client_keepalive_time_ms": 20_000,
    "grpc_client_keepalive_timeout_ms": 30_000,
}
"""Settings of Ray, https://github.com/ray-project/ray/blob/master/src/ray/common/ray_config_def.h."""


def system_config() -> str:
    """As the head's option `--system-config` takes it."""
    return json.dumps(SYSTEM_CONFIG)


def system_environment() -> dict[str, str]:
    """The same as variables, for clusters in which every process has them."""
    return {f"RAY_{name}": str(value) for name, value in SYSTEM_CONFIG.items()}
