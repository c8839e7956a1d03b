"""The steps of a save and of a collection: what is on the store after each when it is killed there.

Both call `reached(step)` at each. The crash tests kill a real process at every member of `SaveStep`
and `GcStep` and fail if one is not passed, so a step cannot be added unseen.

Keys, relative to the folder of a run's checkpoints:

    manifests/<step, 12 digits>.json   the checkpoint: exists, or does not
    packs/<save>/<rank>-<number>       chunks end to end; `save` is unique, a key is written once
    leases/<save>.json                 a save at work: what it writes and what it builds on
    latest.json                        a hint: the newest committed step
    pins/<step>.json                   keep this step whatever the retention says
    gc.json                            the lease of a running garbage collection

Deliberately does not know how any of it is written.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import Enum

__all__ = [
    "GC_LOCK",
    "LATEST",
    "GcReached",
    "GcStep",
    "Reached",
    "SaveStep",
    "ignore_step",
]

LATEST = "latest.json"
GC_LOCK = "gc.json"
MANIFESTS = "manifests"
PACKS = "packs"
LEASES = "leases"
PINS = "pins"
_MANIFEST = re.compile(r"manifests/(\d{12})\.json")


class SaveStep(Enum):
    """Moments of one save. Only COMMITTED and what follows make the step visible."""

    STAGED = "state is copied to host memory; nothing written"
    LEASED = "the lease says what this save will build on"
    PARENT_CONFIRMED = "the parent is still there after the lease"
    FIRST_PACK = "one pack is written"
    PLACED = "every chunk of this rank has its place; its last packs are on their way"
    PACKS_DONE = "this rank's packs are written"
    GATHERED = "every rank's packs are written; the manifest is ready"
    COMMITTED = "the manifest is written"
    HINTED = "latest.json points at it"
    RELEASED = "the lease is gone"


class GcStep(Enum):
    """Moments of one collection. At each of them every kept checkpoint is whole."""

    LOCKED = "gc.json is taken; nothing is removed"
    DROPPED = "the manifests that retention gives up are gone"
    MOVED = "live chunks of badly used packs are written once more"
    REPOINTED = "one manifest points to the moved chunks"
    MARKED = "what is needed is known; nothing is swept"
    SWEPT = "one object that nothing needs is gone"
    UNLOCKED = "gc.json is given back"


Reached = Callable[[SaveStep], None]
GcReached = Callable[[GcStep], None]


def ignore_step(_step: Enum) -> None:
    """The hook of a save or a collection that nobody watches."""


def manifest_key(step: int) -> str:
    """Key of a step's manifest."""
    return f"{MANIFESTS}/{step:012d}.json"


def step_of(key: str) -> int | None:
    """The step of a manifest key; None for any other key."""
    match = _MANIFEST.fullmatch(key)
    return int(match[1]) if match else None


def pack_key(save: str, rank: int, number: int) -> str:
    """Key of one pack of a save."""
    return f"{PACKS}/{save}/{rank}-{number:05d}"


def save_of(key: str) -> str | None:
    """The save that wrote a pack or holds a lease; None for any other key."""
    parts = key.split("/")
    if parts[0] == PACKS and len(parts) == 3:
        return parts[1]
    if parts[0] == LEASES and len(parts) == 2:
        return parts[1].removesuffix(".json")
    return None


def lease_key(save: str) -> str:
    """Key of a save's lease."""
    return f"{LEASES}/{save}.json"


def pin_key(step: int) -> str:
    """Key that pins a step."""
    return f"{PINS}/{step:012d}.json"
