"""Who is in the group next. PURE: what is known of each worker in, a decision out.

States of a group, seen from here:

    forming -> formed -> called -> met -> formed again
                  \\-> handed over: tier B, the whole group restarts

- forming: the first members are on their way to the rendezvous.
- formed: members train. A member that drains stays until its deadline minus what leaving needs.
- called: the members that are wanted differ from those there are, or some have come to the
  rendezvous by themselves because a collective broke.
- met: all that are wanted, and all that are to depart, wait at the rendezvous: commit.
- handed over: something happened that this module does not know, or the group cannot go on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rayburst.train.inplace.messages import Arrival, Asks, Plan, Seat

__all__ = ["Decision", "InPlaceOptions", "Local", "Worker", "decide", "is_due", "plans"]


@dataclass(frozen=True, kw_only=True, slots=True)
class InPlaceOptions:
    """How a group is rebuilt in place.

    leave_margin_s: what leaving needs beside the step that runs: the controller's look at the
        drain, the meeting, and the building of the group.
    suspect_after_s: a member that was silent so long is asked for by a connection to its port;
        one that refuses it, or does not answer it, is lost.
    hung_after_s: a member that was silent so long, or that does not come while the others wait, is
        lost although its process lives: it is ended.
    join_within_s: a joiner that is not ready by then is given up.
    rebuild_s: what a change costs, against which growth must pay.
    """

    leave_margin_s: float = 3.0
    suspect_after_s: float = 3.0
    hung_after_s: float = 60.0
    join_within_s: float = 180.0
    rebuild_s: float = 2.0

    def __post_init__(self) -> None:
        for name in ("leave_margin_s", "suspect_after_s", "hung_after_s", "join_within_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"InPlaceOptions({name}={getattr(self, name)}): give more than 0")
        if self.rebuild_s < 0:
            raise ValueError(f"InPlaceOptions(rebuild_s={self.rebuild_s}): give 0 or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class Worker:
    """A member or a joiner as the controller sees it.

    is_lost: its process or its node is gone, or it hangs. is_due: its node's time has come.
    has_returned: its training function ended well. arrival: it waits at the rendezvous.
    """

    id: str
    is_lost: bool = False
    is_due: bool = False
    has_returned: bool = False
    arrival: Arrival | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """wanted: members of the next group. call: what to ask of all. commits: all are there.
    leaves: too few would be left, so the next group only saves and leaves. hand_over: why tier B.
    """

    wanted: tuple[str, ...]
    call: Asks = "none"
    commits: bool = False
    leaves: bool = False
    hand_over: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Local:
    """A worker's place among those of its node."""

    rank: int
    world: int
    node_rank: int


def is_due(deadline_s: float | None, now_s: float, leave_s: float) -> bool:
    """Whether a drained node must be left now; without a deadline: at once."""
    return deadline_s is None or now_s >= deadline_s - leave_s


def decide(
    members: Sequence[Worker], joiners: Sequence[Worker], *, least: int, most: int, is_formed: bool
) -> Decision:
    """See the module. `members` in order of rank; joiners count once they have arrived."""
    there = tuple(m.id for m in members)
    if not is_formed:
        all_there = all(m.arrival and not m.is_lost for m in members)
        return Decision(wanted=there, commits=all_there)
    alive = [m for m in members if not m.is_lost]
    kept = [m for m in alive if not m.is_due]
    if not alive:
        return Decision(wanted=(), hand_over="no member is left")
    if any(m.has_returned for m in kept):
        return _finishing(there, members)
    ready = [j for j in joiners if j.arrival and not j.is_lost and not j.is_due]
    staying = [*kept, *ready][: max(most, len(kept))] if kept else []
    has_loss, waits = len(alive) < len(members), any(m.arrival for m in alive)
    leaves = len(staying) < least
    if leaves and not has_loss and not waits:
        return Decision(wanted=there, call="leave")
    wanted = tuple(w.id for w in (alive if leaves else staying))
    if wanted == there and not waits:
        return Decision(wanted=there)
    return Decision(
        wanted=wanted,
        call="broken" if has_loss else "change",
        commits=all(m.arrival for m in alive),
        leaves=leaves,
    )


def _finishing(there: tuple[str, ...], members: Sequence[Worker]) -> Decision:
    """Some ranks are through. The others are about to be, unless they lost a peer just now."""
    if any(m.arrival or m.is_lost for m in members):
        return Decision(wanted=there, hand_over="a member was lost while others had finished")
    return Decision(wanted=there)


def plans(
    order: Sequence[str],
    arrivals: Mapping[str, Arrival],
    locals_: Mapping[str, Local],
    *,
    number: int,
    generation: int,
    reason: str,
    leaves: bool = False,
) -> dict[str, Plan]:
    """The plan of each arrived worker: `order` has seats, the rest departs.

    State comes from the lowest rank of those that are furthest. It is sent only when some rank is
    behind; a rank that holds none (None) is behind everybody.
    """
    steps = [arrivals[member].step for member in order]
    held = [step for step in steps if step is not None]
    furthest = max(held, default=None)
    source = None if furthest is None or set(steps) == {furthest} else steps.index(furthest)
    made = {
        member: Plan(kind="depart", number=number, reason=reason)
        for member in arrivals
        if member not in order
    }
    for rank, member in enumerate(order):
        place = locals_[member]
        made[member] = Plan(
            kind="stay",
            number=number,
            reason=reason,
            seat=Seat(
                generation=generation,
                rank=rank,
                world=len(order),
                store=arrivals[order[0]].store,
                address=arrivals[order[0]].address,
            ),
            local_rank=place.rank,
            local_world=place.world,
            node_rank=place.node_rank,
            source=source,
            restores=furthest is None,
            leaves=leaves,
        )
    return made
