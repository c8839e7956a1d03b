"""The driver's side of a run: connected to Ray, and telling what happens as it happens."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping

import ray

from rayburst.train.narrator import Narrator
from rayburst.train.versions import is_tested_ray

__all__ = ["Telling", "connect_to_ray"]


def connect_to_ray(environ: Mapping[str, str]) -> None:
    """To the cluster of RAY_ADDRESS, or to one on this machine."""
    if ray.is_initialized():
        return
    address = environ.get("RAY_ADDRESS")
    # Ray Train's own helpers look for "the" cluster of the machine, and there may be several
    env_vars = {"RAY_ADDRESS": address} if address else {}
    ray.init(logging_level=logging.WARNING, runtime_env={"env_vars": env_vars})


class Telling:
    """Says what rank 0 publishes, from a thread, while the main thread waits for the end."""

    def __init__(self, run: str, say: Callable[[str], None]) -> None:
        self._run = run
        self._narrator = Narrator(say)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="telling", daemon=True)

    def __enter__(self) -> None:
        if is_tested_ray():
            from rayburst.train import _ray_hooks

            _ray_hooks.kv_delete(_ray_hooks.progress_key(self._run))
            self._thread.start()

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(5)

    def _follow(self) -> None:
        from rayburst.train import _ray_hooks

        key = _ray_hooks.progress_key(self._run)
        while not self._ended.wait(1.0):
            self._narrator.hear(_ray_hooks.kv_get(key), time.time())
        self._narrator.hear(_ray_hooks.kv_get(key), time.time(), is_last=True)
