"""Kinds of pools, behind the one interface of `base.Pool`."""

from __future__ import annotations

from rayburst.fleet.layout import FleetDir
from rayburst.fleet.pools.base import Host, Notice, Pool, PoolSite
from rayburst.fleet.pools.kinds import open_pool

__all__ = ["Host", "Notice", "Pool", "PoolSite", "open_pools"]


def open_pools(fleet: FleetDir) -> dict[str, Pool]:
    """The fleet's pools by name, ready to be asked. Starts nothing."""
    spec = fleet.spec()
    state = fleet.read_state()
    site = PoolSite(
        fleet=fleet.name, folder=fleet.path, subnet=state.subnet, joins=bool(state.address)
    )
    return {pool.name: open_pool(pool, site) for pool in spec.pools}
