"""Which requests are computed together, decided when a slot is free and never before.

    batcher = Batcher(max_batch=32)
    batcher.add(Ticket(payload, arrived_s=now, deadline_s=now + 0.1))
    batch = batcher.take(now)             # only when something can compute it
    batcher.learn(batch, took_s=0.012)

Pure: clock readings come in, batches go out; runner.py acts. Why so late: a batch that is closed
while all slots are busy is smaller than the one that could be closed when one frees, and under
load small batches make more load. A lone request never waits for company.

The order: within a priority first come, first served. A request of priority p stands where a
request of priority 0 would stand that came p times `patience_s` later, so no stream of urgent
requests starves the rest (aging in the queue's key instead of a timer; the idea of lottery-free
"age + weight" queues, as in Linux's deadline I/O scheduler). Requests of like length share a
batch: the one at the head says which length. The batch grows while the cost curve says that the
earliest deadline in it still holds.

With a ladder (ladder.py) tickets name no variant: the batch does, once it is taken.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from rayburst.serve.costs import CostCurve, Costs
from rayburst.serve.ladder import Ladder

__all__ = ["Batch", "Batcher", "Ticket", "power_of_two"]

_FASTER, _LEAST = 0.8, 0.25  # a try that took so much less than it did changes the whole curve
_LIKELY = 0.5  # so many requests expected during a batch are one to be ready for


@dataclass(slots=True, eq=False)
class Ticket:
    """One request in the queue. Times are readings of one clock, in seconds.

    `length` is what bucketing goes by (tokens of a sequence; 1 where all inputs are alike),
    `priority` 0 is the most urgent, `variant` names the form of the model that shall answer (with
    a ladder: that answers, once the ticket is taken). `spent_s` is what had passed of its time
    before it came here.
    """

    payload: Any
    arrived_s: float
    deadline_s: float
    priority: int = 1
    length: int = 1
    variant: str = ""
    tenant: str = ""
    spent_s: float = 0.0
    is_gone: bool = field(default=False, init=False)
    is_taken: bool = field(default=False, init=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Requests to compute together, in order; `late` are those whose deadline passed unserved."""

    tickets: list[Ticket]
    late: list[Ticket]
    variant: str = ""
    length: int = 1  # the longest that the bucket holds


def power_of_two(length: int) -> int:
    """The bucket of a length: the next power of two. Padding then wastes less than half."""
    return 1 << max(0, length - 1).bit_length()


class _Lane:
    """Requests of one variant and length: a first-in-first-out queue for each priority."""

    __slots__ = ("_queues", "_waiting")

    def __init__(self) -> None:
        self._queues: dict[int, deque[Ticket]] = {}
        self._waiting = 0

    def __len__(self) -> int:
        return self._waiting

    def add(self, ticket: Ticket) -> None:
        queue = self._queues.get(ticket.priority)
        if queue is None:
            queue = self._queues[ticket.priority] = deque()
        queue.append(ticket)
        self._waiting += 1

    def leave(self) -> None:
        self._waiting -= 1

    def ahead_of(self, priority: int) -> int:
        """Requests that go before one of `priority` that comes now, aging left aside."""
        if len(self._queues) == 1 and priority in self._queues:
            return self._waiting
        return sum(
            1 for p, queue in self._queues.items() if p <= priority for t in queue if not t.is_gone
        )

    def waiting(self, patience_s: float) -> list[Ticket]:
        """Those that wait, in the order in which `head` gives them."""
        live = [t for queue in self._queues.values() for t in queue if not t.is_gone]
        return live if len(self._queues) == 1 else sorted(live, key=lambda t: _key(t, patience_s))

    def head(self, patience_s: float) -> Ticket | None:
        best: Ticket | None = None
        for queue in self._queues.values():
            while queue and queue[0].is_gone:
                queue.popleft()
            if queue and (best is None or _key(queue[0], patience_s) < _key(best, patience_s)):
                best = queue[0]
        return best

    def pop(self, ticket: Ticket) -> None:
        """Takes out a ticket that `head` gave."""
        self._queues[ticket.priority].popleft()
        self._waiting -= 1


class Batcher:
    """The queue of one model on one replica."""

    def __init__(
        self,
        *,
        max_batch: int,
        patience_s: float = 1.0,
        bucket: Callable[[int], int] = power_of_two,
        ladder: Ladder | None = None,
        slots: int = 1,
    ) -> None:
        if max_batch < 1:
            raise ValueError(f"max_batch is {max_batch}: a batch has one request or more")
        self.max_batch = max_batch
        self.costs = Costs()
        self.ladder = ladder
        self._slots = slots
        self._patience_s = patience_s
        self._bucket = bucket
        self._lanes: dict[tuple[str, int], _Lane] = {}
        self._waiting = 0

    def __len__(self) -> int:
        return self._waiting

    def add(self, ticket: Ticket) -> None:
        """Queues a request."""
        self._lane(ticket).add(ticket)
        self._waiting += 1

    def cancel(self, ticket: Ticket) -> bool:
        """Takes a request out; False when it was taken, was late or is gone already."""
        if ticket.is_taken or ticket.is_gone:
            return False
        ticket.is_gone = True
        self._lane(ticket).leave()
        self._waiting -= 1
        return True

    def take(self, now_s: float) -> Batch | None:
        """The next batch, for a slot that is free now; None when nothing waits.

        Requests whose deadline has passed are not computed: they come back as `late`.
        """
        late: list[Ticket] = []
        while (found := self._head()) is not None:
            key, lane, head = found
            if head.deadline_s > now_s:
                variant = key[0] if self.ladder is None else self._step(self.ladder, now_s, key[1])
                curve = self.costs.of(variant, key[1])
                tickets = list(self._grow(lane, curve, now_s, late))
                for ticket in tickets:
                    ticket.variant = variant
                return Batch(tickets=tickets, late=late, variant=variant, length=key[1])
            self._drop(lane, head)
            late.append(head)
        return Batch(tickets=[], late=late) if late else None

    def learn(self, batch: Batch, took_s: float) -> None:
        """Takes in how long a batch took, so that the next deadlines are judged by it."""
        curve, size = self.costs.of(batch.variant, batch.length), len(batch.tickets)
        if self.ladder is not None and self.ladder.is_try(batch.variant) and size <= curve.largest:
            ratio = took_s / max(curve.mean(size), 1e-9)
            if ratio < _FASTER:  # what was known is old: of the other sizes too
                curve.rescale(max(ratio, _LEAST))
        curve.learn(size, took_s)

    def finish_s(self, ticket: Ticket, *, busy_s: float, slots: int = 1) -> float:
        """Seconds until `ticket` would be answered if it were added now: a forecast to admit by.

        `busy_s` is how long it takes until the first slot is free. Everything that goes before
        it is taken to fill whole batches, and its own batch for as large as it may become. With a
        ladder the cheapest rung is what counts, but for one whose deadline is nearer than the
        promise: nobody can ask others' answers down.
        """
        own = self._key_of(ticket)
        is_tight = self._is_tight(ticket)
        has_no_company = is_tight or (busy_s == 0 and not self._waiting)  # it starts at once
        total_s = 0.0
        for key, lane in self._lanes.items():
            ahead = lane.ahead_of(ticket.priority) if len(lane) else 0
            curve = self._expected(key, is_tight, ticket.arrived_s)
            batches, rest = divmod(ahead, self.max_batch)
            total_s += batches * curve.mean(self.max_batch)
            if rest and key != own:
                total_s += curve.mean(rest)
            elif key == own:
                size = rest + 1 if has_no_company else max(rest + 1, self._worth(curve))
                total_s += curve.upper(size) * slots
        if own not in self._lanes:
            curve = self._expected(own, is_tight, ticket.arrived_s)
            total_s += curve.upper(1 if has_no_company else self._worth(curve)) * slots
        return busy_s + total_s / slots

    def _is_tight(self, ticket: Ticket) -> bool:
        """Whether it asks for more than the promise, rather than having lost time on its way."""
        asked_s = ticket.deadline_s - ticket.arrived_s + ticket.spent_s
        return asked_s < 0.999 * self._patience_s  # floats are no sums

    def _worth(self, curve: CostCurve) -> int:
        """The batch that a deadline leaves room for: the largest of which two keep the promise.

        Who was promised less would hold up the growth of its batch, and so all that come after it.
        """
        size = 1 << (self.max_batch.bit_length() - 1)
        while size > 1 and 2 * curve.upper(size) > self._patience_s:
            size //= 2
        return size

    def _expected(self, key: tuple[str, int], is_tight: bool, now_s: float) -> CostCurve:
        """The costs to forecast by."""
        variant, length = key
        if self.ladder is not None and is_tight:
            variant = self.ladder.rungs[self.ladder.level(now_s)].name
        elif self.ladder is not None:
            variant = self.ladder.cheapest(self.costs, length, self.max_batch)
        return self.costs.of(variant, length)

    def _step(self, ladder: Ladder, now_s: float, length: int) -> str:
        """The rung that computes the batch that begins now, whose requests have this length."""
        waiting = {
            key: lane.waiting(self._patience_s) for key, lane in self._lanes.items() if len(lane)
        }
        return ladder.choose(
            lambda variant: self._holds(ladder, variant, waiting, now_s),
            lambda: ladder.cheapest(self.costs, length, self.max_batch),
            self.costs,
            now_s,
        )

    def _holds(
        self,
        ladder: Ladder,
        variant: str,
        waiting: dict[tuple[str, int], list[Ticket]],
        now_s: float,
    ) -> bool:
        """Whether everything that waits would keep the promise if `variant` computed it all.

        And whether who comes while the first batch is computed can still be answered in time.
        """
        begin_s = 0.0  # of a batch, from now on
        places = dict.fromkeys(waiting, 0)
        while left := [key for key, tickets in waiting.items() if places[key] < len(tickets)]:
            key = min(left, key=lambda k: _key(waiting[k][places[k]], self._patience_s))
            length = key[1]
            curve = self.costs.of(variant, length)
            fastest = self.costs.of(ladder.cheapest(self.costs, length, 1), length)
            n, room_s = 0, float("inf")
            limit = min(self._limit(curve), len(waiting[key]) - places[key])
            while n < limit:
                ticket = waiting[key][places[key] + n]
                until_s = max(ticket.deadline_s, ticket.arrived_s + self._patience_s) - now_s
                is_lost = until_s < fastest.upper(1)  # no rung can hold it: it binds none
                next_s = room_s if is_lost else min(room_s, until_s - begin_s)
                if n and curve.upper(n + 1) > next_s:
                    break
                n, room_s = n + 1, next_s
            if curve.upper(n) > room_s:
                return False
            if not any(places.values()):
                coming = ladder.rate(length, now_s) * curve.mean(n)
                size = min(self.max_batch, math.ceil(coming))
                busy_s = curve.mean(n)
                if coming >= _LIKELY and busy_s + fastest.upper(size) > self._patience_s:
                    return False
            places[key] += n
            begin_s += curve.mean(n) / self._slots
        return True

    def _grow(
        self, lane: _Lane, curve: CostCurve, now_s: float, late: list[Ticket]
    ) -> Iterator[Ticket]:
        """Takes from the lane while the earliest deadline that can be held is held.

        One that would make the batch smaller than is worth it is not: it is late, and the batch
        that would be small for its sake would make all that come after it late as well.
        """
        n, room_s = 0, float("inf")
        limit = self._limit(curve)
        alone_s = curve.upper(1)
        worth_s = curve.upper(min(self._worth(curve), max(1, len(lane))))
        while n < limit and (ticket := lane.head(self._patience_s)) is not None:
            left_s = ticket.deadline_s - now_s
            if left_s <= 0:
                self._drop(lane, ticket)
                late.append(ticket)
                continue
            least_s = alone_s if self._is_tight(ticket) else worth_s
            if left_s >= least_s:  # else it binds no other
                room_s = min(room_s, left_s)
            if n and curve.upper(n + 1) > room_s:
                return
            self._drop(lane, ticket)
            n += 1
            yield ticket

    def _limit(self, curve: CostCurve) -> int:
        """At most twice the largest batch seen: what is unknown is tried in doublings."""
        return min(self.max_batch, max(1, 2 * curve.largest))

    def _head(self) -> tuple[tuple[str, int], _Lane, Ticket] | None:
        best: tuple[tuple[str, int], _Lane, Ticket] | None = None
        for key, lane in self._lanes.items():
            if not len(lane):
                continue
            head = lane.head(self._patience_s)
            if head is not None and (
                best is None or _key(head, self._patience_s) < _key(best[2], self._patience_s)
            ):
                best = (key, lane, head)
        return best

    def _drop(self, lane: _Lane, ticket: Ticket) -> None:
        ticket.is_taken = True
        lane.pop(ticket)
        self._waiting -= 1

    def _key_of(self, ticket: Ticket) -> tuple[str, int]:
        return ticket.variant, self._bucket(ticket.length)

    def _lane(self, ticket: Ticket) -> _Lane:
        key = self._key_of(ticket)
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = _Lane()
        return lane


def _key(ticket: Ticket, patience_s: float) -> float:
    return ticket.arrived_s + ticket.priority * patience_s
