"""The nodes of a group's workers, as `rayburst.train.plan_layout` takes them.

nodes = machines_of_everyone(place)      # collective: every rank gives what it has
"""

from __future__ import annotations

import os
import socket
from collections import Counter

import torch

from rayburst.train.hardware import this_device
from rayburst.train.parallel.fit import Node
from rayburst.train.place import Place
from rayburst.train.roll import from_everyone

__all__ = ["machines_of_everyone", "node_name"]


def node_name(place: Place) -> str:
    """One name for all workers of a node, Ray's where there is one."""
    return place.node_id if place.node_id != "unknown" else socket.gethostname()


def machines_of_everyone(place: Place, memory_bytes: int | None = None) -> list[Node]:
    """By first rank: each node, a device for each of its workers, and the least memory of these.

    `memory_bytes`: of each device; None for all that a GPU has, or of a node's memory, where there
    are no GPUs, an equal share for each of its workers.
    """
    device = this_device()
    shares, whole = memory_bytes is None and device.type == "cpu", memory_bytes
    if whole is None:
        whole = _memory_of(device)
    everyone: list[tuple[str, int, bool]] = from_everyone((node_name(place), whole, shares))
    workers = Counter(name for name, _, _ in everyone)
    least: dict[str, int] = {}
    for name, memory, is_shared in everyone:
        mine = memory // workers[name] if is_shared else memory
        least[name] = min(mine, least.get(name, mine))
    return [
        Node(name=name, devices=workers[name], memory_bytes=memory)
        for name, memory in least.items()
    ]


def _memory_of(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
