"""Serve's HAProxy manager with a retry policy for the models that allow one. Ray 2.60.

| touched | for |
|---|---|
| `controller.HAProxyManager` | the class whose actors Serve's controller starts on the nodes |
| `HAProxyApi._generate_config_file_internal` | the text that HAProxy reads at each reload |
| `HAProxyApi._graceful_reload` | a new process begins to count anew |
| `HAProxyManager._update_haproxy_backends` | which replicas an application has from now on |
| `ServeController._all_running_replicas` | what each replica declared of itself |
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import ray
from ray.serve._private import controller, haproxy
from ray.serve._private.common import RequestProtocol
from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE
from ray.util.metrics import Counter

from rayburst.serve.retry.haproxy import SHOW, count_retries, with_retries

_log = logging.getLogger("ray.serve")
_ASK_S = 5.0
_COUNT_EVERY_S = 2.0
_Api: Any = haproxy.HAProxyApi
# The actor class keeps the plain one, as any of Ray's does; only that can be built upon.
_Manager: Any = haproxy.HAProxyManager.__ray_metadata__.modified_class


def use_retrying_haproxy() -> None:
    """Call it in Serve's controller before it starts proxies: it looks the name up there."""
    controller.HAProxyManager = ray.remote(num_cpus=0)(RetryingManager)


class RetryingApi(_Api):  # type: ignore[misc]
    """HAProxy with the policy in the backends of `retried`; counts what it did."""

    retried: frozenset[str] = frozenset()
    node = ""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.counts: dict[str, int] = {}  # by application
        self._counted: dict[tuple[str, str], int] = {}
        self._counter = Counter(
            "rayburst_serve_retries",
            description="Requests asked again of another replica after theirs died",
            tag_keys=("application",),
        )

    def _generate_config_file_internal(self) -> None:
        super()._generate_config_file_internal()
        path = Path(self.config_file_path)
        try:
            backends = {
                name: name in self.retried
                for name, backend in self.backend_configs.items()
                if backend.protocol == RequestProtocol.HTTP
            }
            path.write_text(with_retries(path.read_text(), backends, node=self.node))
        except ValueError as error:  # Serve's own configuration serves, without retries
            _log.error("%s", error)

    async def _graceful_reload(self) -> None:
        await self.count()
        await super()._graceful_reload()

    async def count(self) -> None:
        """Adds what the running process asked again since it was last looked at.

        What a process does after it handed over to the next is not seen: a lower bound.
        """
        try:
            pid, retries = count_retries(await self._send_socket_command(SHOW))
        except (RuntimeError, ValueError):
            return  # between two processes, or not up yet
        for backend in self.retried & retries.keys() & self.backend_configs.keys():
            more = retries[backend] - self._counted.get((pid, backend), 0)
            if more > 0:
                application = self.backend_configs[backend].app_name
                self.counts[application] = self.counts.get(application, 0) + more
                self._counter.inc(more, tags={"application": application})
                _log.info("asked again for %s: %d", application, more)
            self._counted[pid, backend] = retries[backend]
        self._counted = {key: n for key, n in self._counted.items() if key[0] == pid}


class RetryingManager(_Manager):  # type: ignore[misc]
    """Serve's manager, which also learns what each replica allows."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._allowed: dict[str, bool] = {}  # by the replica's actor name
        haproxy.HAProxyApi = RetryingApi  # this process has one; the line below makes it
        super().__init__(*args, **kwargs)
        self._haproxy.node = self._node_id[:12]
        self._counting = self.event_loop.create_task(self._count())

    async def _count(self) -> None:
        while True:
            await asyncio.sleep(_COUNT_EVERY_S)
            await self._haproxy.count()

    async def _update_haproxy_backends(self) -> None:
        groups = [g for g in self._target_groups if g.protocol == RequestProtocol.HTTP]
        await self._learn({target.name for group in groups for target in group.targets})
        self._haproxy.retried = frozenset(
            self._generate_backend_name(group)
            for group in groups
            if group.targets and all(self._allowed.get(t.name) for t in group.targets)
        )
        await super()._update_haproxy_backends()

    async def _learn(self, names: set[str]) -> None:
        """A replica's word never changes, so only new ones are asked about."""
        self._allowed = {name: known for name, known in self._allowed.items() if name in names}
        if names <= self._allowed.keys():
            return
        try:
            asked = ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
            by_deployment = await asyncio.wait_for(asked._all_running_replicas.remote(), _ASK_S)
        except (ray.exceptions.RayError, ValueError, TimeoutError) as error:
            _log.warning("what new replicas allow is not known yet: %r", error)
            return  # unknown is not allowed
        for replica in (r for running in by_deployment.values() for r in running):
            if replica.actor_name in names:
                self._allowed[replica.actor_name] = bool(
                    replica.replica_metadata.get("idempotent", False)
                )
