"""The first process of a host on a machine of its own: joins the cluster, watches for notices.

    python -m rayburst.fleet.node FOLDER

FOLDER holds `node.json` (NodeOrders) and Ray's `token`; `pools.luggage` makes both. When this
process ends the host is no node any more: why is left in FOLDER/ended, for whoever looks. A notice
is told to the agent (in Ray's key-value store) and becomes Ray's drain with the notice's own
deadline; when Ray took that is told too. At the deadline of a machine that its owner takes, every
process of the host is killed; EC2 takes its instances itself.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rayburst.fleet import processes
from rayburst.fleet.files import create_once, read_json
from rayburst.fleet.interruptions import ImdsNoticeSource, NoticeSource, OwnerNoticeSource, Watcher
from rayburst.fleet.pools.base import GIVEN_BACK, Notice
from rayburst.fleet.pools.luggage import IMDS, NodeOrders, drained_key, notice_key
from rayburst.fleet.spec import Shape

if TYPE_CHECKING:
    from rayburst.fleet._ray_hooks import Gcs

RECLAIM = Path("~/.rayburst/reclaim")
_POLL_S = 0.25
_LOG = logging.getLogger("rayburst.node")


def main(folder: Path) -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    orders = NodeOrders(**(read_json(folder / "node.json") or {}))
    os.environ.update(
        {
            **orders.environment,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
            "RAY_USAGE_STATS_ENABLED": "0",
            # a process that renames itself must not overwrite the host's mark
            "SPT_NOENV": "1",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
            "RAY_CLOUD_INSTANCE_ID": orders.host,
            "RAY_NODE_TYPE_NAME": orders.pool,
            processes.OWNER_VARIABLE: str(folder),
            processes.HOST_VARIABLE: orders.host,
        }
    )
    # Ray reads its environment when it is imported
    from rayburst.fleet import _ray_hooks

    try:
        raylet = _ray_hooks.start_worker_node(
            gcs_address=orders.gcs_address,
            address=orders.address,
            shape=Shape(cpus=orders.cpus, gpus=orders.gpus, memory_bytes=orders.memory_bytes),
            labels=orders.labels,
        )
    except Exception as error:  # noqa: BLE001  # whatever it was, the head must be told
        _LOG.exception("%s could not join %s", orders.host, orders.gcs_address)
        return _leave(folder, orders.host, f"its Ray node did not start: {error}")
    _LOG.info("%s joined %s from %s", orders.host, orders.gcs_address, orders.address)
    gcs = _ray_hooks.Gcs(orders.gcs_address)
    watcher = Watcher(_source(orders), lambda notice: _tell(gcs, orders.host, notice))
    while raylet.is_running() and processes.alive(raylet):
        notice = watcher.step()
        taken_by_us = notice is not None and notice.reclaim and orders.notices != IMDS
        if notice is not None and taken_by_us and time.time() >= notice.deadline:
            how = GIVEN_BACK if notice.planned else "taken"
            return _leave(folder, orders.host, f"{how}: {notice.why}")
        time.sleep(_POLL_S)
    return _leave(folder, orders.host, "its raylet ended")


def _source(orders: NodeOrders) -> NoticeSource:
    if orders.notices == IMDS:
        return ImdsNoticeSource(rebalance_s=orders.rebalance_s)
    return OwnerNoticeSource(RECLAIM.expanduser())


def _tell(gcs: Gcs, host: str, notice: Notice) -> bool:
    """Tell the agent, then Ray, then the agent when Ray took it.

    The agent's word comes first, so that the drain has its reason.
    """
    from ray.exceptions import RpcError

    from rayburst.fleet._ray_hooks import drain_host

    try:
        gcs.write(notice_key(host), json.dumps(asdict(notice)).encode())
        done = drain_host(gcs, host, notice)
        if done:
            gcs.write(drained_key(host), str(time.time()).encode())
    except RpcError as error:
        _LOG.warning("the head does not take the notice: %s", error)
        return False
    _LOG.info("notice %r until %.1f: drain %s", notice.why, notice.deadline, done)
    return done


def _leave(folder: Path, host: str, why: str) -> int:
    create_once(folder / "ended", why)
    _LOG.info("%s ends: %s", host, why)
    processes.cut(folder, host)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1]).resolve()))
