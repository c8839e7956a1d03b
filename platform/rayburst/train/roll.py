"""What each rank tells all others: collective, over torch's default group where there is one."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist

from rayburst.train.place import Place

__all__ = ["from_everyone", "hosts_of_everyone"]


def from_everyone(mine: Any) -> list[Any]:
    """What each rank gives, by rank."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [mine]
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    return everyone


def hosts_of_everyone(place: Place) -> dict[str, str]:
    """Every worker's host, and its pool; several on one host count as several."""
    found: dict[str, str] = {}
    for host, pool in from_everyone((place.host, place.pool)):
        several = sum(name.split("#")[0] == host for name in found)
        found[f"{host}#{several}"] = pool
    return found
