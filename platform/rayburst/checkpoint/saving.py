"""One save, all ranks: plan once, hash and place, gather, write, commit.

The plan of the first save is kept while the layout of the state stays the same on every rank, so
a steady save costs no planning and no plan traffic. Runs in any thread, on its own group.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import msgspec
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, WriteItem

from rayburst.checkpoint.alike import plan_alike
from rayburst.checkpoint.drafting import Layout, Piece, Placed, layout_of, pieces_of
from rayburst.checkpoint.garbage import garbage_pause
from rayburst.checkpoint.group import Group
from rayburst.checkpoint.manifest import Manifest
from rayburst.checkpoint.packs import ChunkIndex
from rayburst.checkpoint.planner import StateSavePlanner
from rayburst.checkpoint.progress import Progress
from rayburst.checkpoint.staging import HostBuffer, Snapshot
from rayburst.checkpoint.store import ObjectStore
from rayburst.checkpoint.writer import CheckpointWriter, SaveSettings

__all__ = ["PlanCache", "Written", "write_checkpoint"]

_packed = msgspec.msgpack.Encoder()
_placed = msgspec.msgpack.Decoder(list[Placed])


@dataclass(slots=True)
class PlanCache:
    """This rank's part of a state's layout; on rank 0 also the whole of it."""

    layout: int = -1
    items: list[Piece | WriteItem] | None = None
    whole: Layout | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """A committed save as one rank sees it; only rank 0 has the manifest."""

    sha256: str
    manifest: Manifest | None
    index: ChunkIndex


def write_checkpoint(
    store: ObjectStore,
    snapshot: Snapshot,
    settings: SaveSettings,
    progress: Progress,
    group: Group,
    cache: PlanCache,
) -> Written:
    """Save; returns on every rank when the checkpoint is committed.

    Bytes come from the snapshot; nothing of the live state but its layout is looked at.
    """
    planner = StateSavePlanner(snapshot.staged)
    writer = CheckpointWriter(store, settings, progress)
    try:
        items = _plan(planner, snapshot, group, cache, settings.staged)
        ticket = group.rank0(writer.open)
        # as bytes: pickling ten thousand small objects takes longer than hashing them
        placed = group.together(
            lambda: (
                _packed.encode(writer.place_items(items, planner, group.rank, ticket)),
                settings.rng,
            )
        )
        writer.world = group.world
        group.each(lambda: _draft_and_finish(writer, cache.whole, placed))
        sha256 = group.rank0(lambda: writer.commit().sha256)
    except BaseException:
        writer.abort()
        raise
    finally:
        writer.close()
    return Written(sha256=sha256, manifest=writer.manifest, index=writer.index)


def _draft_and_finish(
    writer: CheckpointWriter, whole: Layout | None, gathered: list[tuple[bytes, Any]]
) -> None:
    if whole is not None:  # rank 0
        with garbage_pause():
            placed = chain.from_iterable([_placed.decode(data) for data, _ in gathered])
            writer.draft(whole, placed, [rng for _, rng in gathered])
    writer.finish_packs()


def _plan(
    planner: StateSavePlanner,
    snapshot: Snapshot,
    group: Group,
    cache: PlanCache,
    staged: HostBuffer | None,
) -> list[Piece | WriteItem]:
    kept = cache.items if cache.layout == snapshot.layout else None
    if group.everyone(kept is not None) and kept is not None:
        return kept
    if staged is not None:
        alike = plan_alike(snapshot, group, staged)
        if alike is not None:
            cache.layout, cache.items = snapshot.layout, alike[0]
            cache.whole = alike[1] if group.rank == 0 else None
            return alike[0]
    planner.take(snapshot.leaves, snapshot.paths)
    plans = group.together(planner.create_local_plan)
    found: list[Metadata] = []

    def whole() -> list[SavePlan]:
        dealt, metadata = planner.create_global_plan(plans)
        found.append(metadata)
        return [replace(plan, planner_data=None) for plan in dealt]

    plan = planner.finish_plan(group.deal(whole))
    items: list[Piece | WriteItem] = list(plan.items)
    if staged is not None:
        items = pieces_of(plan.items, planner, staged)
    cache.layout, cache.items = snapshot.layout, items
    cache.whole = layout_of(found[0]) if found else None
    return items
