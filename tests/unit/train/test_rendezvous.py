"""The meeting place of a group's workers, without Ray."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from rayburst.train.inplace.messages import Arrival, Call, Plan, Pulse
from rayburst.train.inplace.rendezvous import Rendezvous

PULSE = Pulse(address=("h", 1))


def arrival(step: int = 3) -> Arrival:
    return Arrival(step=step, generation=1, address=("h", 1), store=("h", 2))


def run(case: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(case, 20))


async def arrived(meeting: Rendezvous, member: str, step: int = 3) -> "asyncio.Task[Plan]":
    task = asyncio.create_task(meeting.arrive(member, arrival(step)))
    while True:
        sight = (await meeting.look()).members.get(member)
        if sight and sight.arrival and sight.arrival.step == step:
            return task
        await asyncio.sleep(0)


def test_a_call_reaches_members_that_watch_and_those_that_ask_later() -> None:
    async def case() -> None:
        meeting = Rendezvous(wait_s=10)
        watching = asyncio.create_task(meeting.watch("a", 0, PULSE))
        await asyncio.sleep(0)
        call = Call(number=1, kind="change", reason="r")
        await meeting.call(call)
        assert await watching == call
        assert await meeting.watch("b", 0, PULSE) == call

    run(case())


def test_a_heartbeat_comes_back_without_a_call() -> None:
    async def case() -> None:
        meeting = Rendezvous(wait_s=0.01)
        assert (await meeting.watch("a", 0, PULSE)).kind == "none"
        assert (await meeting.look()).members["a"].pulse == PULSE

    run(case())


def test_members_get_their_own_plan() -> None:
    async def case() -> None:
        meeting = Rendezvous()
        a, b = await arrived(meeting, "a"), await arrived(meeting, "b")
        stay, depart = Plan(kind="stay", number=1), Plan(kind="depart", number=1)
        await meeting.commit({"a": stay, "b": depart, "gone": stay})
        assert (await a, await b) == (stay, depart)
        assert (await meeting.look()).members["a"].arrival is None

    run(case())


def test_a_member_that_comes_again_is_known_by_its_newest_arrival() -> None:
    async def case() -> None:
        meeting = Rendezvous()
        old = await arrived(meeting, "a", step=3)
        new = await arrived(meeting, "a", step=4)
        assert (await old).kind == "abandon", "nobody listens to this answer any more"
        plan = Plan(kind="stay", number=2)
        await meeting.commit({"a": plan})
        assert await new == plan

    run(case())


def test_a_plan_that_comes_twice_is_given_once() -> None:
    async def case() -> None:
        meeting = Rendezvous()
        task = await arrived(meeting, "a")
        plan = Plan(kind="stay", number=1)
        await meeting.commit({"a": plan})
        await meeting.commit({"a": plan})
        assert await task == plan
        again = await arrived(meeting, "a", step=9)
        assert not again.done()
        again.cancel()

    run(case())


def test_forgotten_members_are_not_seen() -> None:
    async def case() -> None:
        meeting = Rendezvous(wait_s=0)
        await meeting.watch("a", 0, PULSE)
        await meeting.drop(["a", "never seen"])
        assert not (await meeting.look()).members

    run(case())
