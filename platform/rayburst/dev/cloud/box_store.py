"""An object store inside a box: SeaweedFS at the router, where every host reaches it.

    store = start_store(box)
    store.uri, store.server.endpoint, store.server.environment()

It ends with the box; what it holds stays in the box's folder. Run as a module it waits, inside the
box, until the server answers, and makes the bucket.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from rayburst.dev.cloud.box import Box, router_address
from rayburst.dev.objectstore import PORTS, S3Server
from rayburst.errors import StartError
from rayburst.fleet import processes
from rayburst.fleet.files import tail

BUCKET = "fleet"
_READY_S = 90.0
_PORTS = range(20_000, 22_768)
"""They and their gRPC twins lie below those that the kernel gives to connections; in the box nobody
else listens there, and local sockets of two boxes share this machine's /tmp."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BoxStore:
    """A store that runs."""

    server: S3Server
    uri: str = f"s3://{BUCKET}"


def start_store(box: Box) -> BoxStore:
    """Start a store in a box that is open, with one bucket. Raises StartError or StoreError."""
    ports = random.sample(_PORTS, PORTS)
    server = S3Server(box.folder / "store", address=router_address("onprem"), ports=ports)
    server.write_config()
    env = {**os.environ, processes.OWNER_VARIABLE: str(box.folder)}
    log = box.folder / "store.log"
    serving = processes.spawn(box.inside(server.command()), env=env, log=log)
    box.at_end.callback(server.remove_sockets)
    words = [str(server.folder), server.address, *map(str, ports)]
    wait = [sys.executable, "-m", "rayburst.dev.cloud.box_store", *words]
    with subprocess.Popen(box.inside(wait)) as waiting:
        while waiting.poll() is None:
            if serving.poll() is not None:
                waiting.kill()
            time.sleep(0.05)
    if waiting.returncode:
        raise StartError(f"the box's object store did not start; {tail(log)}")
    return BoxStore(server=server)


def main(folder: Path, address: str, ports: list[int]) -> None:
    server = S3Server(folder, address=address, ports=ports)
    log = folder.parent / "store.log"
    server.wait_until_ready(lambda: f"see {log}", timeout_s=_READY_S)
    server.create_bucket(BUCKET)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], [int(port) for port in sys.argv[3:]])
