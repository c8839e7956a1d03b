"""Holds Python's cycle collector back while thousands of small objects are made or dropped.

Ten thousand tensors make a hundred thousand tuples. The collector would walk everything that a
training process has loaded, again and again, and find nothing: half of the time of such a save.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["garbage_pause"]


@contextmanager
def garbage_pause() -> Iterator[None]:
    """No cycle collection inside. Two threads may overlap: the first to leave ends the pause."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
