"""Makes leased machines of an SSH pool nodes of the cluster: luggage and one command, over SSH.

A machine runs its setup and its Ray node by itself once it was told to, so nothing of this head
waits for it. That it was told is on record (`joins.json` beside the host); a head that was killed
in between tells it again, and the machine does it once.
"""

from __future__ import annotations

import fcntl
import json
import logging
import threading
from pathlib import Path

from rayburst.errors import FleetError, NodeNotFoundError, PoolError
from rayburst.fleet.files import write_atomically
from rayburst.fleet.layout import FleetDir
from rayburst.fleet.pools.base import Host
from rayburst.fleet.pools.luggage import OWNER, node_orders, pack_luggage
from rayburst.fleet.pools.ssh_host import SshMachine

_LOG = logging.getLogger("rayburst.ssh")


def was_told(folder: Path) -> bool:
    """Whether the machine of the host recorded in `folder` was told to join."""
    return (folder / "joins.json").exists()


def tell_in_background(fleet: FleetDir, host: Host, machine: SshMachine, folder: Path) -> None:
    """Start telling a machine to join; one that was told, or is being told, is left alone."""
    if not was_told(folder):
        work = (fleet, host, machine, folder)
        threading.Thread(target=_tell, args=work, name=f"join-{host.id}", daemon=True).start()


def _tell(fleet: FleetDir, host: Host, machine: SshMachine, folder: Path) -> None:
    try:
        with (folder / "joins.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not was_told(folder):
                orders = node_orders(fleet, host, notices=OWNER)
                machine.join(host.id, pack_luggage(fleet, orders))
                write_atomically(folder / "joins.json", json.dumps({"address": host.address}))
    except (BlockingIOError, FileNotFoundError):
        return  # somebody else does, or the host was given back meanwhile
    except (PoolError, FleetError, NodeNotFoundError) as error:
        _LOG.warning("%s could not be told to join, and will be again: %s", host.id, error)
