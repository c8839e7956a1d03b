"""Kinds of pools, behind the one interface of `base.Pool`."""

from __future__ import annotations

from rayburst.fleet.layout import FleetDir
from rayburst.fleet.pools.base import Host, Notice, Pool
from rayburst.fleet.pools.process import ProcessPool

__all__ = ["Host", "Notice", "Pool", "open_pools"]


def open_pools(fleet: FleetDir) -> dict[str, Pool]:
    """The fleet's pools by name, ready to be asked. Starts nothing."""
    subnet = fleet.read_state().subnet
    return {
        pool.name: ProcessPool(pool, fleet_dir=fleet.path, subnet=subnet)
        for pool in fleet.spec().pools
    }
