"""What Ray Serve is told by the environment of a fleet's processes. Pure.

    serve_environment(spec, state.ports, given=os.environ)

Serve's controller is always rayburst's: it keeps floors off spot and asks again for dead replicas
(rayburst.serve.controller). HAProxy, and with it the fast lane, is for fleets whose file says
`serve: {haproxy: true}`: then Serve listens on all addresses, and models ask for keys.
"""

from __future__ import annotations

from collections.abc import Mapping

from rayburst.fleet.spec import FleetSpec

HAPROXY_PORTS = {
    "haproxy_metrics": "RAY_SERVE_HAPROXY_METRICS_PORT",
    "haproxy_stats": "RAY_SERVE_HAPROXY_STATS_PORT",
    "serve_fallback": "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT",
    "serve_fallback_grpc": "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT",
}
"""Ports of Serve with HAProxy by role. Where a fleet has none of them, Ray's own defaults hold."""
_CALLBACK = "RAY_SERVE_CONTROLLER_CALLBACK_IMPORT_PATH"


def serve_environment(
    spec: FleetSpec, ports: Mapping[str, int], *, given: Mapping[str, str]
) -> dict[str, str]:
    """Variables that every process of the fleet needs alike; a callback that is `given` stays."""
    env = {_CALLBACK: given.get(_CALLBACK) or "rayburst.serve.controller:install"}
    if spec.serve.haproxy:
        env["RAY_SERVE_ENABLE_HA_PROXY"] = "1"
        env |= {name: str(ports[role]) for role, name in HAPROXY_PORTS.items() if role in ports}
    return env


def listens_on(spec: FleetSpec, head_address: str) -> str:
    """Where Serve listens: replicas on other nodes have servers of their own behind HAProxy."""
    return "0.0.0.0" if spec.serve.haproxy else head_address
