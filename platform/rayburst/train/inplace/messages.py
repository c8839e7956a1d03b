"""What workers, the rendezvous and the controller tell each other. PURE."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

__all__ = ["QUIET", "Arrival", "Asks", "Call", "Look", "Plan", "Pulse", "Seat", "Sight"]

Asks = Literal["none", "change", "broken", "leave"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """What the controller asks of all members. `number` grows with each call.

    `change`: meet at the rendezvous after this step. `broken`: the same, but a member is lost, so
    do not wait for the step. `leave`: save and leave, the whole group restarts.
    """

    number: int
    kind: Asks
    reason: str


QUIET = Call(number=0, kind="none", reason="")


@dataclass(frozen=True, kw_only=True, slots=True)
class Pulse:
    """What a member tells with each heartbeat.

    `address`: a port that answers as long as it lives. `step_s`: how long its last step took.
    `leave_s`: what it needs to save and leave. `saves_first`: it saves before each change.
    """

    address: tuple[str, int]
    step_s: float = 0.0
    leave_s: float = 0.0
    saves_first: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Arrival:
    """A member waits for a plan. `step`: steps in the whole state it holds, None without one.
    `generation`: of the group it comes from. `address`: as in Pulse. `store`: host and port of the
    store that it lends if it becomes rank 0.
    """

    step: int | None
    generation: int
    address: tuple[str, int]
    store: tuple[str, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Seat:
    """A rank of one generation of the group; `store` is the host and port of rank 0's store,
    `address` a port that answers as long as rank 0 lives.
    """

    generation: int
    rank: int
    world: int
    store: tuple[str, int]
    address: tuple[str, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What one member does next.

    `stay`: take `seat`, receive state from rank `source` (None: all hold the same), or load it from
    the store (`restores`: nobody holds any); then, with `leaves`, save and leave. `depart`: return,
    the others go on. `abandon`: leave at once, the whole group restarts.
    """

    kind: Literal["stay", "depart", "abandon"]
    number: int
    reason: str = ""
    seat: Seat | None = None
    local_rank: int = 0
    local_world: int = 1
    node_rank: int = 0
    source: int | None = None
    restores: bool = False
    leaves: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Sight:
    """A member as the rendezvous knows it; times are ages in seconds."""

    silent_s: float
    pulse: Pulse
    arrival: Arrival | None
    waiting_s: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """Everything the rendezvous knows. `number`: of the last call."""

    incarnation: str
    number: int
    members: Mapping[str, Sight]
