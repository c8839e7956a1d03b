"""The first process of a process host: starts the raylet, watches for notices, ends with its host.

Run by ProcessPool as `python -m rayburst.fleet.pools.process_host HOST_FOLDER`. It reads the
fleet's state from the folder two levels up, joins the cluster as a Ray node, and is what a
machine's init is: when it is gone the host is gone. At the deadline of a reclaim it takes the
whole host away, as a cloud
would: no process gets a word.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from pathlib import Path

from rayburst.fleet import processes
from rayburst.fleet.interruptions import ProcessNoticeSource, Watcher
from rayburst.fleet.layout import FleetDir, ray_environment
from rayburst.fleet.pools.base import GIVEN_BACK, Notice
from rayburst.fleet.pools.process import record_init
from rayburst.fleet.pools.records import mark_gone, read_host
from rayburst.fleet.render import node_labels

_POLL_S = 0.2
_LOG = logging.getLogger("rayburst.host")


def main(folder: Path) -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    record_init(folder, os.getpid())
    fleet = FleetDir(folder.parent.parent)
    state = fleet.read_state()
    os.environ.update(ray_environment(fleet, state))
    host = read_host(folder)
    if host is None:
        _LOG.error("%s has no host.json", folder)
        return 1
    pool = fleet.spec().pool(host.pool)
    os.environ.update(RAY_CLOUD_INSTANCE_ID=host.id, RAY_NODE_TYPE_NAME=host.pool)

    # Ray reads its environment when it is imported
    from rayburst.fleet import _ray_hooks

    labels = {**node_labels(pool), "rayburst.io/host": host.id}
    try:
        raylet = _ray_hooks.start_worker_node(
            gcs_address=state.gcs_address,
            address=host.address,
            shape=pool.shape,
            labels=labels,
            temp_dir=f"{state.ray_tmp}/{host.id[-4:]}",
        )
    except Exception as error:  # noqa: BLE001  # whatever it was, the host must be on record as gone
        _LOG.exception("%s could not join %s", host.id, state.gcs_address)
        return _leave(fleet, folder, host.id, f"its Ray node did not start: {error}")
    _LOG.info("%s joined %s from %s", host.id, state.gcs_address, host.address)

    gcs = _ray_hooks.Gcs(state.gcs_address)

    def drain(notice: Notice) -> bool:
        done = _ray_hooks.drain_host(gcs, host.id, notice)
        _LOG.info("notice %r until %.1f: drain %s", notice.why, notice.deadline, done)
        return done

    watcher = Watcher(ProcessNoticeSource(folder), drain)
    while raylet.is_running():
        notice = watcher.step()
        if notice is not None and notice.reclaim and time.time() >= notice.deadline:
            how = GIVEN_BACK if notice.planned else "taken"
            return _leave(fleet, folder, host.id, f"{how}: {notice.why}")
        time.sleep(_POLL_S)
    return _leave(fleet, folder, host.id, "its raylet ended")


def _leave(fleet: FleetDir, folder: Path, host: str, why: str) -> int:
    mark_gone(folder, at=time.time(), why=why)
    _LOG.info("%s ends: %s", host, why)
    processes.cut(fleet.path, host)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1])))
