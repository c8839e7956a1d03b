"""Keeps an embedded fleet's processes alive: its object store, and what `fleet.supervisor` keeps.

Run by `rayburst up` as `python -m rayburst.dev.supervisor FLEET_FOLDER`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from rayburst.dev.embedded import store_server
from rayburst.fleet.layout import FleetDir
from rayburst.fleet.supervisor import Service, supervise


def main(folder: Path) -> None:
    fleet = FleetDir(folder)
    state = fleet.read_state()
    stores = []
    if state.store_is_embedded:
        command = store_server(fleet, state).command()
        stores = [Service("object-store", command, wanted=lambda: True)]
    supervise(fleet, state, stores)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
