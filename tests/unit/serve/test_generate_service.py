"""Many callers of one engine: their texts, their departures, their errors."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from contextlib import aclosing

import pytest
import torch
from torch import Tensor

from rayburst.errors import RefusedError, RequestFailedError
from rayburst.serve.generate.engine import Engine, EngineOptions
from rayburst.serve.generate.request import Request
from rayburst.serve.generate.schedule import Piece
from rayburst.serve.generate.service import GenerationService
from rayburst.train.gpt import GPT, GPTConfig


@pytest.fixture(scope="module")
def model() -> GPT:
    torch.set_num_threads(1)
    torch.manual_seed(2)
    made = GPT(GPTConfig(block_size=32, n_layer=1, n_head=2, n_embd=16)).eval()
    return made.double().requires_grad_(False)


@pytest.fixture
def engine(model: GPT) -> Engine:
    return Engine(model, EngineOptions(max_running=4, block_tokens=4))


@pytest.fixture
def service(engine: Engine) -> Iterator[GenerationService]:
    made = GenerationService(engine, max_waiting=2)
    yield made
    made.close()
    assert engine.pool.available == engine.pool.count
    assert not engine.is_busy


def ask(n: int = 0, *, tokens: int = 12) -> Request:
    return Request(prompt=b"text %d" % n, max_tokens=tokens, temperature=0.0)


def own(model: GPT, request: Request) -> bytes:
    idx = torch.tensor([list(request.prompt)])
    made = model.generate(idx, request.max_tokens, temperature=0.0)
    return bytes(made[0, len(request.prompt) :].tolist())


class Gate:
    """Holds the engine's step in its long part until it is opened; may break it."""

    def __init__(self, engine: Engine) -> None:
        self._read = engine.cache.read
        self.is_entered, self.is_open = threading.Event(), threading.Event()
        self.breaks = 0
        engine.cache.read = self.read  # type: ignore[method-assign]

    def read(self, pieces: Sequence[Piece]) -> Tensor:
        self.is_entered.set()
        assert self.is_open.wait(30)
        if self.breaks:
            self.breaks -= 1
            raise MemoryError("no memory for this step")
        return self._read(pieces)


def test_callers_of_two_loops_get_their_own_texts(model: GPT, engine: Engine) -> None:
    service = GenerationService(engine)

    async def three(first: int) -> list[bytes]:
        asked = [service.write(ask(first + n)) for n in range(3)]
        return [written.data for written in await asyncio.gather(*asked)]

    found: dict[int, list[bytes]] = {}
    threads = [
        threading.Thread(target=lambda n=first: found.update({n: asyncio.run(three(n))}))
        for first in (0, 10)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for first in (0, 10):
        assert found[first] == [own(model, ask(first + n)) for n in range(3)]
    service.close()


def test_a_stream_brings_the_text_in_pieces_and_says_how_it_ended(
    model: GPT, service: GenerationService
) -> None:
    async def pieces() -> list[tuple[bytes, str | None, int]]:
        return [(p.data, p.reason, p.tokens) async for p in service.stream(ask(tokens=30))]

    found = asyncio.run(pieces())
    assert b"".join(data for data, _, _ in found) == own(model, ask(tokens=30))
    assert [reason for _, reason, _ in found] == [None] * (len(found) - 1) + ["length"]
    assert sum(tokens for _, _, tokens in found) == 30


def test_who_leaves_frees_place_and_blocks_before_the_step_is_over(
    engine: Engine, service: GenerationService
) -> None:
    gate = Gate(engine)

    async def story() -> None:
        leaver = asyncio.create_task(service.write(ask(tokens=30)))
        await asyncio.to_thread(gate.is_entered.wait, 30)
        assert service.stats.running == 1
        assert service.stats.blocks_free < service.stats.blocks
        leaver.cancel()
        await asyncio.wait([leaver])
        assert leaver.cancelled()
        assert not gate.is_open.is_set()  # the step is still under way
        assert service.stats.running == 0
        assert service.stats.blocks_free == service.stats.blocks
        gate.is_open.set()
        written = await service.write(ask(1))
        assert written.tokens == 12

    asyncio.run(story())


def test_closing_a_stream_ends_its_text(service: GenerationService) -> None:
    async def story() -> None:
        async with aclosing(service.stream(ask(tokens=500))) as pieces:
            async for _ in pieces:
                break
        assert (service.stats.running, service.stats.waiting) == (0, 0)
        assert service.stats.tokens < 500

    asyncio.run(story())


def test_a_full_queue_refuses_at_once_and_says_when_to_come_back(
    engine: Engine, service: GenerationService
) -> None:
    gate = Gate(engine)

    async def story() -> None:
        first = asyncio.create_task(service.write(ask()))
        await asyncio.to_thread(gate.is_entered.wait, 30)
        waiting = [asyncio.create_task(service.write(ask(n))) for n in (1, 2)]
        await asyncio.sleep(0)  # they have entered
        with pytest.raises(RefusedError, match="2 texts wait already") as refused:
            await service.write(ask(3))
        assert (refused.value.status, refused.value.retry_after_s) == (503, 1.0)
        gate.is_open.set()
        await asyncio.gather(first, *waiting)

    asyncio.run(story())


def test_a_step_that_fails_fails_its_texts_and_no_others(
    model: GPT, engine: Engine, service: GenerationService
) -> None:
    gate = Gate(engine)
    gate.breaks = 1

    async def story() -> None:
        guilty = asyncio.create_task(service.write(ask()))
        await asyncio.to_thread(gate.is_entered.wait, 30)
        other = asyncio.create_task(service.write(ask(1)))
        await asyncio.sleep(0)
        gate.is_open.set()
        with pytest.raises(RequestFailedError, match="the model failed"):
            await guilty
        assert (await other).data == own(model, ask(1))
        await service.check()

    asyncio.run(story())
    assert gate.breaks == 0


def test_a_service_that_is_closed_says_so(engine: Engine) -> None:
    service = GenerationService(engine)
    gate = Gate(engine)

    async def story() -> None:
        under_way = asyncio.create_task(service.write(ask(tokens=500)))
        await asyncio.to_thread(gate.is_entered.wait, 30)
        closing = asyncio.create_task(asyncio.to_thread(service.close))
        gate.is_open.set()
        with pytest.raises(RequestFailedError, match="ask again"):
            await under_way
        await closing
        with pytest.raises(RequestFailedError, match="ask again"):
            await service.write(ask())
        with pytest.raises(RequestFailedError, match="thread is gone"):
            await service.check()

    asyncio.run(story())
