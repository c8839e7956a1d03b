"""A spot market in a box: how many hosts a pool of this machine can have, changed at will.

    set_market(fleet, "spot-a", hosts=0, notice_s=10, now=time.time())    # it vanishes
    set_market(fleet, "spot-a", hosts=None, notice_s=10, now=time.time()) # and is back

Launches above what the market has fail as a cloud's do, and hosts above it get notice. It changes
no fleet file, and it knows nothing of why a market does what it does.
"""

from __future__ import annotations

import json

from rayburst.errors import PoolError
from rayburst.fleet.failures import recovered
from rayburst.fleet.files import write_atomically
from rayburst.fleet.layout import FleetDir
from rayburst.fleet.pools import open_pools
from rayburst.fleet.pools.base import Notice
from rayburst.fleet.pools.process import market_file


def set_market(
    fleet: FleetDir, pool: str, *, hosts: int | None, notice_s: float, now: float
) -> list[str]:
    """Let a pool's market have so many hosts from now on; returns the hosts that were taken.

    Args:
        hosts: None is as many as the fleet file allows.
        notice_s: what the hosts above it are given; 0 is a power cut.

    Raises:
        PoolError: no pool of this name.
    """
    pools = open_pools(fleet)
    if pool not in pools:
        raise PoolError(f"no pool {pool!r} in fleet {fleet.name!r}; its pools: {', '.join(pools)}")
    if hosts is None:
        market_file(fleet.path, pool).unlink(missing_ok=True)
        recovered(fleet, pool, at=now)  # who opens it need not wait until it is asked again
        return []
    write_atomically(market_file(fleet.path, pool), json.dumps({"hosts": hosts}))
    living = [host for host in pools[pool].hosts() if host.lives and host.notice is None]
    taken = [host.id for host in living[hosts:]]
    for host in taken:
        why = f"the market of {pool} has {hosts} host(s)"
        if notice_s <= 0:
            pools[pool].terminate(host, why=f"power cut: {why}")
        else:
            pools[pool].notify(host, Notice(given_at=now, deadline=now + notice_s, why=why))
    return taken
