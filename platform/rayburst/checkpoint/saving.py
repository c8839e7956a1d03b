"""One save, all ranks: plan once, write, gather, commit.

The plan of the first save is kept while the layout of the state stays the same on every rank, so
a steady save costs no planning and no plan traffic. Runs in any thread, on its own group.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan

from rayburst.checkpoint.group import Group
from rayburst.checkpoint.manifest import Manifest
from rayburst.checkpoint.packs import ChunkIndex
from rayburst.checkpoint.planner import StateSavePlanner
from rayburst.checkpoint.progress import Progress
from rayburst.checkpoint.staging import Snapshot
from rayburst.checkpoint.store import ObjectStore
from rayburst.checkpoint.writer import CheckpointWriter, SaveSettings

__all__ = ["PlanCache", "Written", "write_checkpoint"]


@dataclass(slots=True)
class PlanCache:
    """This rank's plan for a layout; on rank 0 also what all ranks write."""

    layout: int = -1
    plan: SavePlan | None = None
    metadata: Metadata | None = None


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
        plan, metadata = _plan(planner, snapshot, group, cache)
        ticket = group.rank0(writer.open)
        results = group.together(
            lambda: writer.write_items(plan.items, planner, group.rank, ticket)
        )
        writer.world = group.world
        sha256 = group.rank0(lambda: _finish(writer, metadata, results))
    except BaseException:
        writer.abort()
        raise
    return Written(sha256=sha256, manifest=writer.manifest, index=writer.index)


def _finish(writer: CheckpointWriter, metadata: Metadata | None, results: list[Any]) -> str:
    if metadata is None:
        raise RuntimeError("rank 0 has no plan of the whole checkpoint")
    return writer.finish_with(metadata, results).sha256


def _plan(
    planner: StateSavePlanner,
    snapshot: Snapshot,
    group: Group,
    cache: PlanCache,
) -> tuple[SavePlan, Metadata | None]:
    kept = cache.plan if cache.layout == snapshot.layout else None
    if group.everyone(kept is not None) and kept is not None:
        return kept, cache.metadata
    planner.take(snapshot.leaves, snapshot.paths)
    plans = group.together(planner.create_local_plan)
    found: list[Metadata] = []

    def whole() -> list[SavePlan]:
        dealt, metadata = planner.create_global_plan(plans)
        found.append(metadata)
        return [replace(plan, planner_data=None) for plan in dealt]

    plan = planner.finish_plan(group.deal(whole))
    cache.layout, cache.plan, cache.metadata = snapshot.layout, plan, found[0] if found else None
    return plan, cache.metadata
