"""Where the workers of one group meet: an asyncio object that runs as a Ray actor of 0 CPU.

Workers call `watch` (a heartbeat that also waits for the controller's next call) and `arrive`
(waits for the controller's plan). The controller calls `look`, `call` and `commit`. It decides
nothing and remembers little: when its process dies Ray starts it again, empty, and repeats the
calls that wait; the controller sees another `incarnation` and says again what it wants. Every
method may therefore be repeated.

The module knows no Ray, so that its tests need none.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field

from rayburst.train.inplace.messages import QUIET, Arrival, Call, Look, Plan, Pulse, Sight

__all__ = ["Rendezvous"]


@dataclass(slots=True)
class _Known:
    heard_s: float
    pulse: Pulse
    arrival: Arrival | None = None
    arrived_s: float = 0.0
    plans: list[Plan] = field(default_factory=list)


class Rendezvous:
    """See the module. `wait_s`: the longest that `watch` waits, and so the time of a heartbeat."""

    def __init__(self, wait_s: float = 1.0) -> None:
        self._incarnation = uuid.uuid4().hex
        self._wait_s = wait_s
        self._call = QUIET
        self._members: dict[str, _Known] = {}
        self._changed = asyncio.Condition()

    async def watch(self, member: str, seen: int, pulse: Pulse) -> Call:
        """The last call; waits up to `wait_s` for one after number `seen`."""
        self._hear(member, pulse)
        async with self._changed:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(
                    self._changed.wait_for(lambda: self._call.number > seen), self._wait_s
                )
        self._hear(member, pulse)
        return self._call

    async def arrive(self, member: str, arrival: Arrival) -> Plan:
        """Waits for the plan of `member`."""
        known = self._members.get(member)
        known = self._hear(member, known.pulse if known else Pulse(address=arrival.address))
        known.arrival, known.arrived_s, known.plans = arrival, time.monotonic(), []
        async with self._changed:
            self._changed.notify_all()  # an earlier arrival of this member waits in vain
            await self._changed.wait_for(lambda: bool(known.plans) or known.arrival is not arrival)
        if known.arrival is not arrival:  # the member came again: this call is an old one
            return Plan(kind="abandon", number=self._call.number, reason="a repeated arrival")
        known.arrival = None
        return known.plans.pop()

    async def look(self) -> Look:
        """For the controller."""
        now = time.monotonic()
        sights = {
            member: Sight(
                silent_s=now - known.heard_s,
                pulse=known.pulse,
                arrival=None if known.plans else known.arrival,
                waiting_s=now - known.arrived_s if known.arrival else 0.0,
            )
            for member, known in self._members.items()
        }
        return Look(incarnation=self._incarnation, number=self._call.number, members=sights)

    async def call(self, call: Call) -> None:
        """From the controller to all members."""
        async with self._changed:
            self._call = call
            self._changed.notify_all()

    async def commit(self, plans: Mapping[str, Plan]) -> None:
        """Give arrived members their plans; those who have gone on or away get none."""
        async with self._changed:
            for member, plan in plans.items():
                known = self._members.get(member)
                if known is not None and known.arrival is not None:
                    known.plans = [plan]
            self._changed.notify_all()

    async def drop(self, members: list[str]) -> None:
        """Forget members that are gone."""
        for member in members:
            self._members.pop(member, None)

    def _hear(self, member: str, pulse: Pulse) -> _Known:
        now = time.monotonic()
        known = self._members.setdefault(member, _Known(heard_s=now, pulse=pulse))
        known.heard_s, known.pulse = now, pulse
        return known
