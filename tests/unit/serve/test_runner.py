"""The runner: slots, cancellation, and failures that concern one request."""

from __future__ import annotations

import asyncio
import time

import pytest

from rayburst.errors import LateError, RequestFailedError
from rayburst.serve.batcher import Batcher, Ticket
from rayburst.serve.runner import Runner

pytestmark = pytest.mark.filterwarnings("error")


class Desk:
    """A runner whose batches wait until they are let go."""

    def __init__(self, *, slots=1, max_batch=8, fails=lambda payloads: None):
        batcher = Batcher(max_batch=max_batch)
        batcher.costs.of("", 1).learn(max_batch, 0.001)
        self.batches, self.gates, self.answers = [], [], {}
        self.fails = fails
        self.runner = Runner(batcher, self.compute, done=self.done, slots=slots)

    async def compute(self, payloads):
        self.batches.append(payloads)
        gate = asyncio.Event()
        self.gates.append(gate)
        await gate.wait()
        error = self.fails(payloads)
        if error is not None:
            raise error
        return [10 * p for p in payloads]

    def done(self, ticket, answer):
        assert ticket.payload not in self.answers, "answered twice"
        self.answers[ticket.payload] = answer

    def submit(self, payload, slo_s=60.0):
        now_s = time.monotonic()
        ticket = Ticket(payload, arrived_s=now_s, deadline_s=now_s + slo_s)
        self.runner.submit(ticket)
        return ticket

    async def turn(self):
        for _ in range(8):
            await asyncio.sleep(0)

    async def finish(self, wanted):
        while len(self.answers) < wanted:
            for gate in self.gates:
                gate.set()
            await self.turn()


def test_requests_of_one_turn_share_a_batch_and_late_comers_wait_for_the_slot():
    async def run():
        desk = Desk()
        for n in range(3):
            desk.submit(n)
        await desk.turn()
        desk.submit(3)
        desk.submit(4)
        await desk.turn()
        assert desk.batches == [[0, 1, 2]]
        assert desk.runner.running == 1
        await desk.finish(5)
        assert desk.batches == [[0, 1, 2], [3, 4]]
        assert desk.answers == {n: 10 * n for n in range(5)}

    asyncio.run(run())


def test_two_slots_hold_two_batches():
    async def run():
        desk = Desk(slots=2)
        for n in range(3):
            desk.submit(n)
            await desk.turn()
        assert desk.batches == [[0], [1]]
        await desk.finish(3)

    asyncio.run(run())


def test_a_cancelled_request_is_not_computed():
    async def run():
        desk = Desk()
        desk.submit(0)
        await desk.turn()
        gone, running = desk.submit(1), desk.submit(2)
        assert desk.runner.cancel(gone)
        assert not desk.runner.cancel(gone)
        await desk.finish(2)
        assert desk.batches == [[0], [2]]
        assert not desk.runner.cancel(running)

    asyncio.run(run())


def test_a_request_that_waited_past_its_deadline_is_told_so():
    async def run():
        desk = Desk()
        desk.submit(0)
        await desk.turn()
        desk.submit(1, slo_s=0.0)
        await desk.finish(2)
        assert isinstance(desk.answers[1], LateError)

    asyncio.run(run())


def test_one_poisoned_request_does_not_fail_its_batch():
    async def run():
        desk = Desk(fails=lambda payloads: ZeroDivisionError() if 5 in payloads else None)
        for n in range(8):
            desk.submit(n)
        await desk.finish(8)
        assert isinstance(desk.answers.pop(5), ZeroDivisionError)
        assert desk.answers == {n: 10 * n for n in range(8) if n != 5}

    asyncio.run(run())


def test_too_few_answers_are_no_answers():
    async def run():
        desk = Desk()

        async def short(payloads):
            return []

        desk.runner._compute = short
        desk.submit(0)
        await desk.turn()
        assert isinstance(desk.answers[0], RequestFailedError)
        assert "returned 0 answers" in str(desk.answers[0])

    asyncio.run(run())
