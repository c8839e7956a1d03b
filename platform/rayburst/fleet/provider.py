"""Ray's external node provider: the autoscaler's hands. It only carries out.

Named in the autoscaling config as `provider: {type: external, module:
rayburst.fleet.provider.HybridNodeProvider, fleet_dir: ...}`; Ray's autoscaler v2 wraps it in its
NodeProviderAdapter and calls it from several threads. Which pools may launch is decided before, by
the agent through the caps; what the autoscaler asks for before it has seen new caps is refused here
(`openings.py`). Building one starts nothing, since `ray up` builds one on the user's machine too.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from ray.autoscaler.node_provider import NodeProvider
from ray.autoscaler.tags import NODE_KIND_HEAD, TAG_RAY_NODE_KIND, TAG_RAY_USER_NODE_TYPE

from rayburst.errors import PoolError
from rayburst.fleet.failures import record_failure
from rayburst.fleet.layout import FleetDir
from rayburst.fleet.openings import admitted
from rayburst.fleet.pools import open_pools
from rayburst.fleet.pools.base import ENDED_BY_AUTOSCALER, Host, Pool

HEAD_ID = "head"


class HybridNodeProvider(NodeProvider):  # type: ignore[misc]  # Ray ships no annotations for it
    """Node ids are host ids; node types are pools. The head is listed because v2 expects it."""

    def __init__(self, provider_config: dict[str, Any], cluster_name: str) -> None:
        super().__init__(provider_config, cluster_name)
        self._fleet = FleetDir(Path(provider_config["fleet_dir"]))
        self._pools: dict[str, Pool] = open_pools(self._fleet)

    def non_terminated_nodes(self, tag_filters: dict[str, str]) -> list[str]:
        tags = {HEAD_ID: _HEAD_TAGS} | {host.id: host.tags for host in self._living()}
        wanted = tag_filters.items()
        return [node for node, has in tags.items() if wanted <= has.items()]

    def is_running(self, node_id: str) -> bool:
        return node_id == HEAD_ID or self._find(node_id) is not None

    def is_terminated(self, node_id: str) -> bool:
        return not self.is_running(node_id)

    def node_tags(self, node_id: str) -> dict[str, str]:
        if node_id == HEAD_ID:
            return dict(_HEAD_TAGS)
        host = self._find(node_id)
        return dict(host.tags) if host else {}

    def internal_ip(self, node_id: str) -> str:
        if node_id == HEAD_ID:
            return self._fleet.read_state().head_address
        host = self._find(node_id)
        return host.address if host else ""

    def external_ip(self, node_id: str) -> str:
        return self.internal_ip(node_id)

    def create_node(
        self, node_config: dict[str, Any], tags: dict[str, str], count: int
    ) -> dict[str, Any]:
        pool = self._pools[tags[TAG_RAY_USER_NODE_TYPE]]
        with admitted(self._fleet, pool, count):
            try:
                launched = pool.launch(count, tags=tags, why="pending work")
            except PoolError as error:
                record_failure(self._fleet, pool.name, at=time.time(), why=str(error))
                raise
        return {host: {} for host in launched}

    def set_node_tags(self, node_id: str, tags: dict[str, str]) -> None:
        if host := self._find(node_id):
            self._pools[host.pool].tag(node_id, tags)

    def terminate_node(self, node_id: str) -> None:
        if host := self._find(node_id):
            self._pools[host.pool].terminate(node_id, why=ENDED_BY_AUTOSCALER)

    def terminate_nodes(self, node_ids: list[str]) -> None:
        for node_id in node_ids:
            self.terminate_node(node_id)

    def _living(self) -> list[Host]:
        return [host for pool in self._pools.values() for host in pool.hosts() if host.lives]

    def _find(self, node_id: str) -> Host | None:
        return next((host for host in self._living() if host.id == node_id), None)


_HEAD_TAGS = {TAG_RAY_NODE_KIND: NODE_KIND_HEAD, TAG_RAY_USER_NODE_TYPE: HEAD_ID}
