"""One running group, steered through its changes: what the controller sees in, what to do out.

`roster` says who is wanted; this module finds who is lost and whose time has come, keeps in mind
what members were asked and given, and talks to the rendezvous through `tell`. It touches neither
Ray nor a process: ending what is lost and making joiners is for the caller (`_ray_hooks`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rayburst.train.inplace.messages import Asks, Call, Look, Plan, Sight
from rayburst.train.inplace.roster import (
    Decision,
    InPlaceOptions,
    Local,
    Worker,
    decide,
    is_due,
    plans,
)
from rayburst.train.losses import LossBudget

__all__ = ["Member", "Moment", "Outcome", "Steering"]

_BLIND_S = 15.0
_GROUPS_IN_VAIN = 6
"""Such as over a link between two members that is dead while both answer."""
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """A worker as Ray sees it. `has_died`: Ray is sure."""

    id: str
    node: str
    host: str = ""
    has_died: bool = False
    has_returned: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Moment:
    """What the controller sees at once. `look`: None while the rendezvous does not answer.

    `draining`: node -> unix time at which it goes, or None. `now_s`: unix time. `monotonic_s`:
    of a clock that never jumps.
    """

    look: Look | None
    members: Sequence[Member]
    joiners: Sequence[Member]
    draining: Mapping[str, float | None]
    now_s: float
    monotonic_s: float


@dataclass(slots=True)
class Outcome:
    """`lost`: end them now. `forms`: all are at the rendezvous: give them ranks and call `form`."""

    lost: list[str] = field(default_factory=list)
    forms: Decision | None = None


class Steering:
    """See the module. `tell(method, what)` reaches the rendezvous; `unreachable(addresses)` names
    those that do not accept a connection; `least`, `most`: sizes of the group.
    """

    def __init__(
        self,
        *,
        tell: Callable[[str, Any], None],
        unreachable: Callable[[Mapping[str, tuple[str, int]]], set[str]],
        options: InPlaceOptions,
        budget: LossBudget,
        least: int,
        most: int,
    ) -> None:
        self._tell, self._unreachable = tell, unreachable
        self._options, self._budget = options, budget
        self._least, self._most = least, most
        self.generation = 0
        self.handed_over = ""
        self.has_heartbeats = False
        self.lost: dict[str, str] = {}  # member -> how
        self.due: dict[str, str] = {}  # member -> why
        self._incarnation = ""
        self._calls = 0
        self._asked: tuple[str, tuple[str, ...]] = ("", ())
        self._last_plans: dict[str, Plan] = {}
        self._look = Look(incarnation="", number=0, members={})
        self._answered_s: float | None = None
        self._furthest = -1  # step that any member has told
        self._in_vain = 0  # groups in a row that finished no step

    @property
    def is_formed(self) -> bool:
        """Whether the members have met once, and changes are still made here."""
        return self.generation > 0 and not self.handed_over

    def steer(self, moment: Moment) -> Outcome:
        """One look; what members are to know is told on the way."""
        outcome = Outcome()
        if not self._sees(moment):
            return outcome
        if self.handed_over:
            self._abandon()
            return outcome
        self._redeliver()
        if self.generation:
            self._find_lost(moment, outcome)
            self._find_due(moment)
        if not self.handed_over:
            self._decide(moment, outcome)
        return outcome

    def form(self, order: Sequence[str], locals_: Mapping[str, Local], decision: Decision) -> None:
        """Give the arrived members their plans: `order` by rank, the others depart."""
        arrivals = {
            member: sight.arrival
            for member, sight in self._look.members.items()
            if sight.arrival and (member in order or member in self._known)
        }
        self._notice_progress([a.step for a in arrivals.values() if a.step is not None])
        self.generation += 1
        self._last_plans = plans(
            order,
            arrivals,
            locals_,
            number=self._calls,
            generation=self.generation,
            reason=self._reason(),
            leaves=decision.leaves,
        )
        self._tell("commit", self._last_plans)
        # who departs has still to fetch its plan, and Ray may run these calls in any order
        self._tell("drop", [member for member in self._known if member not in self._last_plans])
        self.lost, self.due, self._asked = {}, {}, ("", ())
        _logger.info("generation %d has %d workers", self.generation, len(order))

    def _notice_progress(self, told: Sequence[int]) -> None:
        if told and max(told) > self._furthest:
            self._furthest, self._in_vain = max(told), 0
            self._budget.forgive()
        elif told:
            self._in_vain += 1

    def hand_over(self, why: str, *, saves: bool = False) -> None:
        """From now on the whole group restarts: tier B. `saves`: as nobody is lost, members end
        their step and save before.
        """
        _logger.warning("the group is not rebuilt in place: %s", why)
        self.handed_over = why
        self._calls += 1
        kind: Asks = "leave" if saves else "broken"
        self._tell("call", Call(number=self._calls, kind=kind, reason=why))

    def _sees(self, moment: Moment) -> bool:
        """Take in what the rendezvous knows; without it nothing can be done."""
        self._known = [member.id for member in moment.members]
        if moment.look is None:
            since_s = moment.monotonic_s - (self._answered_s or moment.monotonic_s)
            if self.is_formed and since_s > _BLIND_S:
                self.hand_over("the rendezvous does not answer")
            return False
        self._look, self._answered_s = moment.look, moment.monotonic_s
        self.has_heartbeats = bool(moment.look.members)
        if moment.look.incarnation != self._incarnation:  # it knows nothing of earlier calls
            self._incarnation, self._asked = moment.look.incarnation, ("", ())
        return True

    def _decide(self, moment: Moment, outcome: Outcome) -> None:
        decision = decide(
            [self._seen(m, has_returned=m.has_returned) for m in moment.members],
            self._joiners(moment),
            least=self._least,
            most=self._most,
            is_formed=self.generation > 0,
        )
        if decision.hand_over:
            self.hand_over(decision.hand_over)
            return
        if decision.commits and self._in_vain >= _GROUPS_IN_VAIN:
            self.hand_over("the group breaks over and over, and no step is finished")
            return
        self._call(decision)
        if decision.commits:
            outcome.forms = decision

    def _seen(self, member: Member, *, has_returned: bool = False) -> Worker:
        sight = self._look.members.get(member.id)
        return Worker(
            id=member.id,
            is_lost=member.id in self.lost,
            is_due=member.id in self.due,
            has_returned=has_returned,
            arrival=sight.arrival if sight else None,
        )

    def _joiners(self, moment: Moment) -> list[Worker]:
        seen = [self._seen(joiner) for joiner in moment.joiners]
        gone = self._unreachable({w.id: w.arrival.address for w in seen if w.arrival})
        drained = {j.id for j in moment.joiners if j.node in moment.draining}
        return [replace(w, is_lost=w.id in gone, is_due=w.id in drained) for w in seen]

    def _find_lost(self, moment: Moment, outcome: Outcome) -> None:
        found = {m.id: "its process ended" for m in moment.members if m.has_died}
        # one that has returned need not say any more
        sights = {m.id: self._look.members.get(m.id) for m in moment.members if not m.has_returned}
        waited_s = max((s.waiting_s for s in sights.values() if s and s.arrival), default=None)
        suspects: dict[str, tuple[str, int]] = {}
        for id_, sight in sights.items():
            if sight is None or id_ in self.lost or id_ in found:
                continue
            if self._hangs(sight, waited_s):
                found[id_] = f"it hung for {self._options.hung_after_s:g} s"
            elif sight.silent_s > self._options.suspect_after_s or (
                waited_s is not None and not sight.arrival
            ):
                suspects[id_] = sight.pulse.address
        found |= dict.fromkeys(self._unreachable(suspects), "its port does not answer")
        lost = [m for m in moment.members if m.id in found and m.id not in self.lost]
        for member in lost:
            self.lost[member.id] = (
                f"a worker on {member.host or member.node} was lost: {found[member.id]}"
            )
            _logger.info("%s", self.lost[member.id])
        outcome.lost = [member.id for member in lost]
        # members that go together are one loss
        is_surprise = any(member.node not in moment.draining for member in lost)
        if is_surprise and not self._budget.spend(moment.monotonic_s):
            self.hand_over("workers are lost over and over")

    def _hangs(self, sight: Sight, waited_s: float | None) -> bool:
        """Whether it is silent, or lets the others wait, for too long."""
        late_s = 0.0 if waited_s is None or sight.arrival else waited_s
        return max(sight.silent_s, late_s) > self._options.hung_after_s

    def _find_due(self, moment: Moment) -> None:
        if not moment.draining:
            return
        sights = list(self._look.members.values())
        leave_s = self._options.leave_margin_s + max((s.pulse.step_s for s in sights), default=0.0)
        staying = sum(m.node not in moment.draining for m in moment.members)
        if staying < self._least or any(s.pulse.saves_first for s in sights):  # then all save
            leave_s += max((s.pulse.leave_s for s in sights), default=0.0)
        for member in moment.members:
            if member.node not in moment.draining or member.id in self.due:
                continue
            if is_due(moment.draining[member.node], moment.now_s, leave_s):
                self.due[member.id] = f"{member.host or member.node} is to be taken away"

    def _reason(self) -> str:
        return "; ".join([*self.lost.values(), *self.due.values()]) or "a worker joins"

    def _call(self, decision: Decision) -> None:
        if decision.call == "none" or self._asked == (decision.call, decision.wanted):
            return
        self._asked = (decision.call, decision.wanted)
        self._calls += 1
        self._tell("call", Call(number=self._calls, kind=decision.call, reason=self._reason()))

    def _redeliver(self) -> None:
        """Give plans again that the rendezvous lost with its process."""
        missed = {
            member: self._last_plans[member]
            for member, sight in self._look.members.items()
            if sight.arrival
            and member in self._last_plans
            and sight.arrival.generation < self.generation
        }
        if missed:
            self._tell("commit", missed)
            members = {
                member: replace(sight, arrival=None) if member in missed else sight
                for member, sight in self._look.members.items()
            }
            self._look = replace(self._look, members=members)

    def _abandon(self) -> None:
        plan = Plan(kind="abandon", number=self._calls, reason=self.handed_over)
        arrived = [m for m, sight in self._look.members.items() if sight.arrival]
        self._tell("commit", dict.fromkeys(arrived, plan))
