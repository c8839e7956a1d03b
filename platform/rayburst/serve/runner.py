"""Runs batches: the event loop's side of batcher.py.

    runner = Runner(Batcher(max_batch=32), compute, slots=1)
    answer = await runner.ask(payload, deadline_s=0.1)

`compute` is a coroutine function from a list of payloads to a list of answers of the same
length; an answer that is an exception concerns its own request only. It may hand the work to a
thread, to a GPU stream or to another deployment: a slot is busy until it returns. `slots` above
one keep the next batch under way while an earlier one travels.

Everything happens on the loop that the runner was started on. A batch is closed once per turn of
that loop, after the sockets that were readable in it: requests that arrived together are
computed together without any wait.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from rayburst.errors import LateError, RequestFailedError
from rayburst.serve.batcher import Batch, Batcher, Ticket

__all__ = ["Answer", "Done", "Runner"]

_log = logging.getLogger(__name__)

Answer = Any  # what `compute` made of a payload, or an exception
Done = Callable[[Ticket, Answer], None]
Compute = Callable[[list[Any]], Awaitable[Sequence[Answer]]]


class Runner:
    """One model's queue and slots. `done(ticket, answer)` is called once for each request.

    `begun(batch)` is called before a batch is computed.
    """

    def __init__(
        self,
        batcher: Batcher,
        compute: Compute,
        *,
        done: Done,
        slots: int = 1,
        begun: Callable[[Batch], None] = lambda batch: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.batcher = batcher
        self._compute = compute
        self._done, self._begun = done, begun
        self._slots = slots
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._ends_s: dict[asyncio.Task[None], float] = {}
        self._is_woken = False

    @property
    def running(self) -> int:
        """Batches under way."""
        return len(self._ends_s)

    def busy_s(self, now_s: float) -> float:
        """Seconds until a slot is free, by the cost curve."""
        if len(self._ends_s) < self._slots:
            return 0.0
        return max(0.0, min(self._ends_s.values()) - now_s)

    def forecast_s(self, ticket: Ticket, now_s: float) -> float:
        """Seconds until `ticket` would be answered if it were submitted now."""
        return self.batcher.finish_s(ticket, busy_s=self.busy_s(now_s), slots=self._slots)

    def submit(self, ticket: Ticket) -> None:
        """Queues a request; `done` brings its answer."""
        self.batcher.add(ticket)
        self._wake()

    def cancel(self, ticket: Ticket) -> bool:
        """Takes a request out of the queue; False when it is computed already."""
        return self.batcher.cancel(ticket)

    def _wake(self) -> None:
        if not self._is_woken and len(self._ends_s) < self._slots:
            self._is_woken = True
            self._loop.call_soon(self._fill)

    def _fill(self) -> None:
        self._is_woken = False
        while len(self._ends_s) < self._slots:
            now_s = self._clock()
            batch = self.batcher.take(now_s)
            if batch is None:
                return
            for ticket in batch.late:
                self._done(ticket, LateError("its deadline passed before a slot was free"))
            if batch.tickets:
                self._begun(batch)
                task = self._loop.create_task(self._run(batch, now_s))
                curve = self.batcher.costs.of(batch.variant, batch.length)
                self._ends_s[task] = now_s + curve.mean(len(batch.tickets))

    async def _run(self, batch: Batch, began_s: float) -> None:
        tickets = batch.tickets
        answers = await self._answers([ticket.payload for ticket in tickets])
        if not isinstance(answers, BaseException):
            self.batcher.learn(batch, self._clock() - began_s)
        else:
            answers = await self._apart(tickets, answers)
        task = asyncio.current_task()
        if task is not None:
            self._ends_s.pop(task, None)
        self._fill()
        await asyncio.sleep(0)  # the next batch begins before these answers are written
        for ticket, answer in zip(tickets, answers, strict=True):
            self._done(ticket, answer)

    async def _answers(self, payloads: list[Any]) -> Sequence[Answer] | BaseException:
        try:
            answers = await self._compute(payloads)
        except Exception as error:  # noqa: BLE001  whatever a model raises is an answer
            return error
        if len(answers) == len(payloads):
            return answers
        return RequestFailedError(
            f"predict got {len(payloads)} requests and returned {len(answers)} answers; "
            "it must return one for each, in order"
        )

    async def _apart(self, tickets: list[Ticket], error: BaseException) -> list[Answer]:
        """A batch that failed is computed in halves, so that only the guilty request fails."""
        if len(tickets) == 1:
            _log.error("predict failed", exc_info=error)
            return [error]
        answers: list[Answer] = []
        for half in (tickets[: len(tickets) // 2], tickets[len(tickets) // 2 :]):
            made = await self._answers([ticket.payload for ticket in half])
            if isinstance(made, BaseException):
                made = await self._apart(half, made)
            answers += made
        return answers
