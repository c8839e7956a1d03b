"""Processes beside a group: workers that get ready to join it, and workers that have left it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError

__all__ = ["Departing", "Joiner", "id_of", "warm"]


def warm() -> None:
    """In a joiner: import what a first step would import, while the others train."""
    import torch
    import torch._dynamo
    import torch.distributed
    import torch.nn.parallel  # noqa: F401


@dataclass(slots=True)
class Joiner:
    """A worker that gets ready in a thread of its own, so that nothing waits for it."""

    actor: ActorHandle
    began_s: float
    node: str = ""
    """Where it runs, once that is known."""
    worker: Any = None
    """Ray Train's record of it, once it is ready to run."""
    error: RayError | None = None

    @property
    def id(self) -> str:
        """Its name at the rendezvous."""
        return id_of(self.actor)


@dataclass(slots=True)
class Departing:
    """A worker that has its leave: its process ends once its training function has returned."""

    actor: ActorHandle
    since_s: float
    asked: Any = None

    def has_returned(self) -> bool:
        """Whether it has, or is gone. Never waits."""
        self.asked = self.asked or self.actor.poll_status.remote()
        if not ray.wait([self.asked], timeout=0)[0]:
            return False
        asked, self.asked = self.asked, None
        try:
            return not ray.get(asked).running
        except RayError:
            return True


def id_of(actor: ActorHandle) -> str:
    """A worker's name at the rendezvous."""
    return str(actor._actor_id.hex())
