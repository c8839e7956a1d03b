"""The object store of a fleet, opened from outside of it: with the fleet's own credentials.

Processes of a fleet have the credentials in their environment and call `ObjectStore.open`
themselves.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Mapping

from rayburst.checkpoint.store import ObjectStore, StoreOptions
from rayburst.fleet.layout import FleetDir, store_environment

_one_at_a_time = threading.Lock()


def open_store(fleet: FleetDir, options: StoreOptions | None = None) -> ObjectStore:
    """Open the fleet's object store; sends no request."""
    state = fleet.read_state()
    # the client reads endpoint and credentials from the environment, once, when it is opened
    with _one_at_a_time, _environment(store_environment(fleet, state)):
        return ObjectStore.open(state.store_uri, options)


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value
