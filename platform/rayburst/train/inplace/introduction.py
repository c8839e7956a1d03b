"""How a Ray Train worker learns of the rendezvous: the controller introduces it.

`introduce` runs in the worker's process before the training function does; a worker without an
introduction is not rebuilt in place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError

from rayburst.errors import PeerLostError
from rayburst.train.inplace.messages import Arrival, Call, Plan, Pulse

__all__ = ["ActorBoard", "Introduction", "introduce", "introduction"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Introduction:
    """What a worker needs to take part. `rendezvous`: the actor's handle."""

    rendezvous: Any
    member: str
    timeout_s: float


_given: list[Introduction] = []


def introduce(introduction: Introduction) -> None:
    """Called by the controller in the worker's process."""
    _given[:] = [introduction]


def introduction() -> Introduction | None:
    """What the controller gave this process; None where nothing is rebuilt in place."""
    return _given[0] if _given else None


class ActorBoard:
    """The rendezvous that runs as a Ray actor."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def watch(self, member: str, seen: int, pulse: Pulse) -> Call:
        """See `link.Board`."""
        call: Call = _answer(self._actor.watch.remote(member, seen, pulse))
        return call

    def arrive(self, member: str, arrival: Arrival) -> Plan:
        """See `link.Board`."""
        plan: Plan = _answer(self._actor.arrive.remote(member, arrival))
        return plan

    def drop(self, member: str) -> None:
        """See `link.Board`."""
        self._actor.drop.remote([member])


def _answer(reference: Any) -> Any:
    try:
        return ray.get(reference)
    except RayError as error:
        raise PeerLostError(f"the rendezvous is gone: {error}") from error
