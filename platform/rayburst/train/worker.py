"""What a training worker knows about itself, its node, and the notices that concern it.

Runs inside a Ray Train worker. On the tested Ray notices come from the head's view of drains, read
by a thread; on any other from `ray.train.get_preemption_info()`, which is a barrier and is
therefore asked every `PUBLIC_POLL_STEPS` steps at the same step on all ranks.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import ray
import ray.train

from rayburst.train.notices import DEFAULT_MARGIN_S, Agreement, Notice, NoticeWatcher
from rayburst.train.place import Place
from rayburst.train.versions import is_tested_ray

__all__ = ["Place", "agreement", "place"]

PUBLIC_POLL_STEPS = 20


def place() -> Place:
    """This worker's place; labels that a node lacks read "unknown"."""
    context = ray.train.get_context()
    node_id = ray.get_runtime_context().get_node_id()
    nodes: list[dict[str, Any]] = ray.nodes()
    node = next((node for node in nodes if node["NodeID"] == node_id), {})
    labels = node.get("Labels") or {}
    cpus = int(node.get("Resources", {}).get("CPU", 1))
    return Place(
        rank=context.get_world_rank(),
        world=context.get_world_size(),
        node_id=node_id,
        host=labels.get("rayburst.io/host", node_id),
        market=labels.get("rayburst.io/market", "unknown"),
        pool=labels.get("rayburst.io/pool", "unknown"),
        threads=max(1, cpus // max(1, context.get_local_world_size())),
    )


def agreement(where: Place, margin_s: float = DEFAULT_MARGIN_S) -> Agreement:
    """What the ranks ask each step; its watcher already runs."""
    if is_tested_ray():
        watcher = NoticeWatcher(_hooked_source(where)).start()
        return Agreement(watcher, clock=time.time, margin_s=margin_s)
    watcher = NoticeWatcher(_public_source)
    return Agreement(
        watcher, clock=time.time, margin_s=margin_s, poll_every_steps=PUBLIC_POLL_STEPS
    )


def _hooked_source(where: Place) -> Callable[[], Notice | None]:
    """This node's drain, or the controller's request to save and leave."""
    from rayburst.train import _ray_hooks as hooks

    hooks.hush_reports()
    run = ray.train.get_context().get_experiment_name()

    def ask() -> Notice | None:
        draining = hooks.draining_nodes()
        if where.node_id in draining:
            reason = f"{where.host} is to be taken away"
            return Notice(deadline_s=draining[where.node_id], reason=reason)
        asked = hooks.kv_get(hooks.resize_key(run))
        if asked is not None:
            return Notice(deadline_s=None, reason=f"the group is resized: {asked.decode()} workers")
        return None

    return ask


def _public_source() -> Notice | None:
    """A drain of any node of this run; the same answer on all ranks."""
    info = ray.train.get_preemption_info()
    if info is None:
        return None
    deadline_s = info.deadline_ms / 1000 if info.deadline_ms else None
    nodes = ", ".join(info.preempted_node_ids)
    return Notice(deadline_s=deadline_s, reason=f"{nodes} is to be taken away")
