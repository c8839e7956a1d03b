"""A worker's membership in an elastic group: what a training loop asks at each step.

    membership = Membership.open()
    change = membership.change(None)            # its first place; nobody has told it any state
    ...                                         # take up state as `change` says, see Change
    while step < steps:
        with membership.attempt() as attempt:
            membership.begin(wants_checkpoint=is_due)
            ...                                 # forward, backward
            membership.confirm()
            optimizer.step(); step += 1         # from here on the state holds one step more
            verdict = membership.end()
        if attempt.broken or verdict.change:    # outside of the `with`, see Attempt
            change = membership.change(step)
            if change.place is None: return     # the others go on
            ...                                 # take up state, wrap the model again
        elif verdict.leave: ...                 # save, then membership.leave()
        elif verdict.checkpoint: ...            # save

In place (`inplace/`): the controller asks for a change near the deadline of a node that goes away,
at once when a member is lost, and when a joiner is ready; the process and its state stay. Where
the controller did not introduce this worker, verdicts never ask for a change: a notice becomes
`leave`, a lost peer ends the rank, and the whole group restarts from the newest checkpoint. So one
loop serves both.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn

from rayburst.errors import PeerLostError
from rayburst.train import losses
from rayburst.train.inplace.link import Board, Link
from rayburst.train.inplace.messages import QUIET, Arrival, Call, Plan, Pulse, Seat
from rayburst.train.inplace.process_group import ProcessGroup
from rayburst.train.notices import DEFAULT_MARGIN_S, Agreement, Notice, NoticeWatcher, Verdict
from rayburst.train.place import Place

if TYPE_CHECKING:  # it loads Ray, which a run outside of it does without
    from rayburst.train.inplace.introduction import Introduction

__all__ = ["Attempt", "Change", "Membership"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """A new place, and where its state comes from.

    place: None when this rank is to return from the training function; the others go on.
    source: the rank whose state all ranks take by broadcast; None when all hold the same.
    restores: nobody holds state: load the newest checkpoint, or begin.
    leaves: after that save and leave: the group is below its least size.
    generation: counts the groups that were built; 0 where groups are not rebuilt in place.
    """

    place: Place | None
    source: int | None = None
    restores: bool = False
    leaves: bool = False
    generation: int = 0
    reason: str = ""


class Attempt:
    """Keeps the loss of a peer from ending the loop: `broken` says what happened, or is "".

    Where the group is not rebuilt in place every error passes, and ends this rank. Errors
    of another kind pass always. Only after the `with` block is the error's traceback gone, and with
    it what keeps tensors and groups of the broken step alive: call `change` there.
    """

    def __init__(self, group: ProcessGroup | None) -> None:
        self.broken = ""
        self._group = group

    def __enter__(self) -> Attempt:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        if error is None or self._group is None:
            return False
        # of a group that this process itself has broken torch says many things
        from_abort = isinstance(error, RuntimeError) and self._group.is_aborted
        if not (from_abort or losses.is_peer_loss(error)):
            return False
        self.broken = f"{type(error).__name__}: {error}"
        return True


@dataclass(frozen=True, slots=True)
class _Tie:
    """What a worker has that is rebuilt in place: the rendezvous's other end, and the group."""

    link: Link
    group: ProcessGroup
    adopt: Callable[[Plan, Seat], Place]


class Membership:
    """See the module. One a worker; `begin`, `confirm`, `end` at the same steps on all ranks."""

    def __init__(
        self,
        place: Place,
        agreement: Agreement,
        *,
        tie: _Tie | None = None,
        leave_margin_s: float = DEFAULT_MARGIN_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.place = place
        self._agreement = agreement
        self._tie = tie
        self._leave_margin_s = leave_margin_s
        self._clock = clock
        self._generation = 0
        self._settled = 0  # number of the last call that a plan answered
        self._began_s: float | None = None

    @classmethod
    def open(cls, *, leave_margin_s: float = DEFAULT_MARGIN_S) -> Membership:
        """The membership of this Ray Train worker. `leave_margin_s`: what a step and a checkpoint
        take, for the cases in which the group must save and leave before a deadline.
        """
        from rayburst.train import worker
        from rayburst.train.inplace.introduction import introduction

        where = worker.place()
        given = introduction()
        if given is None:
            return cls(where, worker.agreement(where, leave_margin_s))
        return cls._in_place(where, given, leave_margin_s)

    @classmethod
    def _in_place(cls, where: Place, given: Introduction, leave_margin_s: float) -> Membership:
        import ray

        from rayburst.train import worker
        from rayburst.train.inplace import _ray_hooks
        from rayburst.train.inplace.introduction import ActorBoard

        def adopt(plan: Plan, seat: Seat) -> Place:
            _ray_hooks.adopt(plan, seat)
            return worker.place()

        group = ProcessGroup(host=ray.util.get_node_ip_address(), timeout_s=given.timeout_s)
        return cls.of_group(
            where,
            ActorBoard(given.rendezvous),
            given.member,
            group=group,
            adopt=adopt,
            leave_margin_s=leave_margin_s,
        )

    @classmethod
    def of_group(
        cls,
        where: Place,
        board: Board,
        member: str,
        *,
        group: ProcessGroup,
        adopt: Callable[[Plan, Seat], Place],
        leave_margin_s: float = DEFAULT_MARGIN_S,
    ) -> Membership:
        """A member of a group that is rebuilt in place; `member` is its name at the rendezvous.

        `adopt` makes a plan known to whoever else tells rank and world, and gives the new place.
        """
        made: Membership
        pulse = Pulse(address=group.address, leave_s=leave_margin_s)
        link = Link(board, member, pulse, on_broken=lambda call: made._break(call))
        agreement = Agreement(
            NoticeWatcher(lambda: made._asked_to_leave()),
            clock=time.time,
            poll_every_steps=1,  # looks at what the link's thread has heard
            changes=lambda: made._asked("change", "broken"),
        )
        tie = _Tie(link, group, adopt)
        losses.watch_group(lambda: group.is_aborted)
        made = cls(where, agreement, tie=tie, leave_margin_s=leave_margin_s)
        link.start()
        return made

    @property
    def is_in_place(self) -> bool:
        """Whether this group is rebuilt in place when its members change."""
        return self._tie is not None

    @property
    def reason(self) -> str:
        """Why the group changes or leaves."""
        return self._tie.link.latest.reason if self._tie else self._agreement.reason

    def attempt(self) -> Attempt:
        """Put everything that talks to peers into `with membership.attempt() as attempt:`."""
        return Attempt(self._tie.group if self._tie else None)

    def decline(self) -> None:
        """Before the first `change`, on all ranks: this function cannot be rebuilt in place."""
        if self._tie is not None:
            from rayburst.train import worker

            self.close()
            self._tie = None
            self._agreement = worker.agreement(self.place, self._leave_margin_s)

    @contextlib.contextmanager
    def opening(self) -> Iterator[None]:
        """Around the making of further process groups: they break when this group does."""
        if self._tie is None:
            yield
            return
        with self._tie.group.opening():
            yield

    def saves_first(self) -> None:
        """Whoever leaves needs the time of a checkpoint before: no rank holds the whole state."""
        if self._tie is not None:
            self._tie.link.pulse = replace(self._tie.link.pulse, saves_first=True)

    def begin(self, *, wants_checkpoint: bool = False, stopped_s: float = 0.0) -> None:
        """Start the exchange of this step; overlaps with what follows. `stopped_s`: seconds for
        which the last change stopped this rank; `end` gives the longest of all.
        """
        now_s = self._clock()
        if self._tie and self._began_s is not None:
            link = self._tie.link
            link.pulse = replace(link.pulse, step_s=now_s - self._began_s)
        self._began_s = now_s
        self._agreement.begin(wants_checkpoint=wants_checkpoint, stopped_s=stopped_s)

    def confirm(self) -> None:
        """Between backward and the optimizer: PeerLostError when the group broke meanwhile.

        An aborted NCCL collective raises nothing and leaves rubbish in the gradients.
        """
        if self._tie is None:
            return
        self._tie.group.finish()
        if self._tie.group.is_aborted:
            raise PeerLostError(f"the group broke within the step: {self.reason}")

    def end(self) -> Verdict:
        """The same verdict on every rank."""
        return self._agreement.end()

    def change(self, step: int | None) -> Change:
        """Meet the others and take a new place.

        `step`: steps in the whole state that this rank holds; None when it holds none: at the
        start, after a broadcast that broke, or for sharded state that no rank has whole.
        """
        tie = self._tie
        if tie is None:
            return Change(place=self.place, restores=True)  # Ray Train has made the group
        self._agreement.reset()
        self._began_s = None
        while True:
            tie.group.forget()
            plan = self._arrive(tie, step)
            if plan.kind == "depart":
                self.close()
                return Change(place=None, reason=plan.reason, generation=self._generation)
            with contextlib.suppress(PeerLostError):  # a peer was lost while the group was built
                self._take(tie, plan)
                return Change(
                    place=self.place,
                    source=plan.source,
                    restores=plan.restores,
                    leaves=plan.leaves,
                    generation=self._generation,
                    reason=plan.reason,
                )

    def leave(self, reason: str | None = None) -> NoReturn:
        """After saving: end this rank so that the whole group restarts. Every rank must."""
        losses.leave(reason or self.reason)

    def close(self) -> None:
        """End the heartbeats."""
        if self._tie:
            self._tie.link.stop()

    def _arrive(self, tie: _Tie, step: int | None) -> Plan:
        group = tie.group
        arrival = Arrival(
            step=step, generation=self._generation, address=group.address, store=group.store
        )
        try:
            plan = tie.link.arrive(arrival)
        except PeerLostError as error:
            losses.leave(str(error), error)
        if plan.kind == "abandon":
            losses.leave(plan.reason, PeerLostError(plan.reason))
        return plan

    def _take(self, tie: _Tie, plan: Plan) -> None:
        if plan.seat is None:
            raise PeerLostError(f"a plan without a seat: {plan}")
        self._generation, self._settled = plan.seat.generation, plan.number
        tie.group.build(plan.seat, is_stale=lambda: tie.link.latest.number > plan.number)
        self.place = tie.adopt(plan, plan.seat)

    def _asked(self, *kinds: str) -> bool:
        call = self._tie.link.latest if self._tie else QUIET
        return call.number > self._settled and call.kind in kinds

    def _asked_to_leave(self) -> Notice | None:
        """By the controller; or because it cannot ask any more, if a notice came."""
        is_cut = self._tie is not None and self._tie.link.is_cut
        if is_cut or self._asked("leave"):
            return Notice(deadline_s=None, reason=self.reason)
        return None

    def _break(self, call: Call) -> None:
        """In the link's thread: a member is lost, nobody need wait for it."""
        if self._tie is not None and call.number > self._settled:
            self._tie.group.abort()
