"""Makes EC2 instances nodes of the cluster: luggage in the object store, user data that fetches it.

    text = user_data(fleet, pool)       # puts the pool's luggage in the store, once a content

User data can be read by whoever may describe the instance, so it holds no secret: it names the
fleet's luggage in the object store, which an instance reads with the rights of its profile. What is
in there, Ray's token among it, is `luggage`'s; `pickup` runs on the instance.
"""

from __future__ import annotations

import hashlib
import shlex
from dataclasses import replace

from rayburst.checkpoint.store import ObjectStore
from rayburst.fleet.events import IMPATIENT
from rayburst.fleet.kindspec import VENV_PYTHON
from rayburst.fleet.layout import FleetDir
from rayburst.fleet.pools.base import Host
from rayburst.fleet.pools.luggage import IMDS, node_orders, pack_luggage
from rayburst.fleet.spec import PoolSpec
from rayburst.fleet.store import open_store

_SCRIPT = """\
#!/bin/bash
# A host of pool {pool} of fleet {fleet}: fetches what it needs from the fleet's object store, joins
# the cluster, and ends itself when it is no node any more.
export HOME="${{HOME:-/root}}"
{exports}{python} -m rayburst.fleet.pickup {words}
shutdown -h now
"""


def luggage_prefix(fleet: str) -> str:
    """Where a fleet's luggage lies in its object store."""
    return f"luggage/{fleet}/"


def forget_luggage(store: ObjectStore, fleet: str) -> None:
    """Take a fleet's luggage, and with it its token, out of its store. Raises StoreError."""
    for one in list(store.list(luggage_prefix(fleet))):
        store.delete(one.key)


def user_data(fleet: FleetDir, pool: PoolSpec) -> str:
    """The user data of a pool's instances, once their luggage is in the store.

    Raises:
        StoreError: the store did not take the luggage.
    """
    state, spec = fleet.read_state(), fleet.spec()
    anyone = Host(
        id="", pool=pool.name, address="", requested_at=0.0, price_usd_per_hour=None, why=""
    )
    orders = node_orders(fleet, anyone, notices=IMDS)
    if pool.ec2 is not None:
        orders = replace(orders, rebalance_s=pool.ec2.rebalance_s)
    luggage = pack_luggage(fleet, orders)
    digest = hashlib.sha256(luggage).hexdigest()[:16]
    key = f"{luggage_prefix(fleet.name)}{pool.name}-{digest}.tar"
    store = open_store(fleet, IMPATIENT)
    if not store.exists(key):
        store.put(key, luggage)
    reach = {"AWS_ENDPOINT_URL": state.store_endpoint, "AWS_ALLOW_HTTP": "true"}
    exports = "".join(
        f"export {name}={shlex.quote(value)}\n" for name, value in reach.items() if value
    )
    # an image has rayburst; the venv that `software.setup` makes is not there yet
    python = "python3" if spec.software.python == VENV_PYTHON else spec.software.python
    return _SCRIPT.format(
        pool=pool.name,
        fleet=fleet.name,
        exports=exports if state.store_endpoint else "",
        python=shlex.quote(python),
        words=shlex.join([pool.name, state.store_uri, key]),
    )
