"""What an EC2 instance of a fleet runs first: fetches its luggage and becomes a node.

    python -m rayburst.fleet.pickup POOL s3://bucket luggage/FLEET/POOL-DIGEST.tar

Run by the user data that `pools.ec2_join` renders, as root. Which host it is, and where, it learns
from the machine's metadata service; what it needs, it reads from the fleet's object store with the
rights of the instance. It returns when the host is no node any more; user data then ends the
instance, so that one that cannot join, or lost its cluster, does not stay and cost money.
"""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from rayburst.checkpoint.store import ObjectStore
from rayburst.errors import ObjectNotFoundError, StartError, StoreError
from rayburst.fleet.files import write_atomically
from rayburst.fleet.interruptions import InstanceMetadata
from rayburst.fleet.pools.ec2_instances import host_id

_TRY_S, _PAUSE_S = 300.0, 2.0
_LOG = logging.getLogger("rayburst.pickup")
T = TypeVar("T")


def main(pool: str, uri: str, key: str) -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    metadata = InstanceMetadata()
    paths = ("instance-id", "local-ipv4", "placement/availability-zone")
    instance, address, zone = _patiently(
        lambda: [metadata.text(path) for path in paths], "the metadata service"
    )
    store = ObjectStore.open(uri)
    luggage = _patiently(lambda: store.get(key), f"{uri}/{key}")
    folder = Path.home() / ".rayburst" / "hosts" / host_id(pool, instance)
    unpack(luggage, folder, host=host_id(pool, instance), address=address, zone=zone)
    _LOG.info("%s at %s in %s has its luggage", folder.name, address, zone)
    return subprocess.run(["sh", "./join.sh"], cwd=folder, check=False).returncode


def unpack(luggage: bytes, folder: Path, *, host: str, address: str, zone: str) -> None:
    """Unpack a pool's luggage in `folder`, for its user only, and fill in whose it is."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    with tarfile.open(fileobj=io.BytesIO(luggage)) as tar:
        tar.extractall(folder, filter="data")
    orders = json.loads((folder / "node.json").read_text())
    orders["host"], orders["address"] = host, address
    where = {"ray.io/availability-zone": zone, "rayburst.io/zone": zone}
    orders["labels"] = where | orders["labels"] | {"rayburst.io/host": host}
    write_atomically(folder / "node.json", json.dumps(orders), private=True)


def _patiently(ask: Callable[[], T], what: str) -> T:
    """An answer, asked for until there is one. Raises StartError after five minutes."""
    deadline = time.monotonic() + _TRY_S
    while True:
        try:
            return ask()
        except (OSError, StoreError) as error:
            if isinstance(error, ObjectNotFoundError) or time.monotonic() > deadline:
                raise StartError(f"{what} gives no answer: {error}") from error
            _LOG.info("%s gives no answer yet: %s", what, error)
        time.sleep(_PAUSE_S)


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
