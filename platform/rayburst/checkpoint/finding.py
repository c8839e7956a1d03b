"""For who gave a place without checkpoints: what was looked for, what is there, the right call.

    store = open_with_checkpoints(uri, "rayburst checkpoints ls {uri}")

Deliberately changes nothing: a folder that does not exist is not made.
"""

from __future__ import annotations

from itertools import islice

from rayburst.checkpoint.catalog import steps
from rayburst.checkpoint.protocol import LATEST, LEASES, MANIFESTS, PACKS, PINS
from rayburst.checkpoint.store import ObjectStore, local_path
from rayburst.errors import CheckpointNotFoundError, StoreError

__all__ = ["open_with_checkpoints"]

_OWN = {MANIFESTS, PACKS, LEASES, PINS}
_USUAL = "checkpoints"  # where rayburst's training and Ray Train's runs put them
_LOOK_INTO = 50


def open_with_checkpoints(uri: str, call: str, *, or_packs: bool = False) -> ObjectStore:
    """The store at `uri`, which holds a committed checkpoint; with `or_packs`, anything of one.

    A run's folder stands for the `checkpoints` in it: that is what a job says it saves to.

    `call` is what the user typed, with {uri} in the place of the URI. CheckpointNotFoundError.
    """
    path = local_path(uri)
    if path is not None and not path.is_dir():
        raise CheckpointNotFoundError(
            f"{uri}: no checkpoint here, for there is no folder {path}. Give the folder that a run "
            f"saved to (the one with {MANIFESTS}/ in it): {call.format(uri='FOLDER')}"
        )
    store = ObjectStore.open(uri)
    found = store.folders()
    if (or_packs and PACKS in found) or (MANIFESTS in found and steps(store)):
        return store
    if _USUAL in found and _OWN.isdisjoint(found):
        return open_with_checkpoints(store.child(_USUAL).uri, call, or_packs=or_packs)
    looked = f"{store.uri}: no checkpoint here. Looked for {MANIFESTS}/<step>.json below it"
    if PACKS in found or LEASES in found:
        raise CheckpointNotFoundError(
            f"{looked}; there are only packs of a save that is under way or was killed before its "
            f"commit. Wait for the first commit and call again: {call.format(uri=uri)} . If no job "
            f"saves here: rayburst checkpoints gc {uri} --delete"
        )
    places = _near(store, list(found))
    if places:
        shown = "\n  ".join(call.format(uri=place) for place in places[:5])
        more = f"\n  and {len(places) - 5} more" if len(places) > 5 else ""
        raise CheckpointNotFoundError(f"{looked}. There are some close by:\n  {shown}{more}")
    there = f"It holds: {', '.join(list(found)[:8])}" if found else "Nothing is below it"
    raise CheckpointNotFoundError(
        f"{looked}. {there}. Give the URI that the run saved to: that of `save(state, URI, ...)`, "
        f"or <storage_path>/<run>/{_USUAL} under Ray Train: {call.format(uri='URI')}"
    )


def _near(store: ObjectStore, folders: list[str]) -> list[str]:
    """URIs with checkpoints: the place above, one below, or `checkpoints` below that."""
    above, _, last = store.uri.rstrip("/").rpartition("/")
    if last in (_OWN | {LATEST}) and "://" not in f"{above}/"[-3:]:
        return [above] if _holds(ObjectStore.open(above)) else []
    places = []
    for name in islice(folders, _LOOK_INTO):
        for child in (store.child(name), store.child(f"{name}/{_USUAL}")):
            if _holds(child):
                places.append(child.uri)
                break
    return places


def _holds(store: ObjectStore) -> bool:
    try:
        return next(iter(store.list(MANIFESTS)), None) is not None
    except StoreError:
        return False
