"""Many callers, one engine: a thread takes steps, callers await their texts on loops of their own.

    service = GenerationService(Engine(model))
    text = await service.write(request)             # Written: bytes, reason, tokens
    async with aclosing(service.stream(request)) as pieces:
        async for piece in pieces:                  # Written: what is new; the last has a reason
            ...
    service.close()

A caller that is cancelled, or that closes its stream, ends its text at once: place and blocks are
free before the step under way is over. Callers may be on any event loop of this process. A queue
that is full refuses at once.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass

from rayburst.errors import RefusedError, RequestFailedError
from rayburst.serve.generate.engine import Engine, Event, Reason, Writing
from rayburst.serve.generate.request import Request

__all__ = ["GenerationService", "Stats", "Written"]

_log = logging.getLogger(__name__)
_RETRY_S = 1.0  # told to those that find the queue full, before any speed is known


@dataclass(frozen=True, slots=True)
class Written:
    """What was written: `tokens` bytes were drawn for `data`, a stop text's among them."""

    data: bytes
    reason: Reason | None
    tokens: int


@dataclass(frozen=True, slots=True)
class Stats:
    """What the engine has to do now, and has done."""

    running: int
    waiting: int
    blocks_free: int
    blocks: int
    tokens: int
    preemptions: int


@dataclass(eq=False, slots=True)
class _Caller:
    """Where events of a text go."""

    loop: asyncio.AbstractEventLoop
    events: asyncio.Queue[Written | BaseException]


class GenerationService:
    """Steps an engine in a thread while there is work. `max_waiting` texts may wait at most."""

    def __init__(
        self,
        engine: Engine,
        *,
        max_waiting: int = 1024,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine, self._max_waiting, self._clock = engine, max_waiting, clock
        self._callers: dict[Writing, _Caller] = {}
        self._changed = threading.Condition()  # guards the engine's books and `_callers`
        self._is_closed = False
        self._step_s = 0.0
        self._thread = threading.Thread(target=self._run, name="generate", daemon=True)
        self._thread.start()

    @property
    def stats(self) -> Stats:
        """Now; from any thread."""
        engine = self._engine
        with self._changed:
            return Stats(
                running=len(engine.scheduler.running),
                waiting=len(engine.scheduler.waiting),
                blocks_free=engine.pool.available,
                blocks=engine.pool.count,
                tokens=engine.tokens_written,
                preemptions=engine.scheduler.preemptions,
            )

    async def write(self, request: Request) -> Written:
        """The whole text. RefusedError when too many wait, RequestFailedError when a step fails."""
        data, tokens = b"", 0
        async for piece in self.stream(request):
            data += piece.data
            tokens += piece.tokens
            reason = piece.reason
        return Written(data, reason, tokens)

    async def stream(self, request: Request) -> AsyncGenerator[Written, None]:
        """The text piece by piece, a token or more each; errors as `write` has them."""
        caller = _Caller(asyncio.get_running_loop(), asyncio.Queue())
        writing = self._enter(request, caller)
        try:
            while True:
                piece = await caller.events.get()
                if isinstance(piece, BaseException):
                    raise piece
                while piece.reason is None and not caller.events.empty():
                    more = caller.events.get_nowait()  # a slow reader gets fewer, longer pieces
                    if isinstance(more, BaseException):
                        raise more
                    piece = Written(piece.data + more.data, more.reason, piece.tokens + more.tokens)
                yield piece
                if piece.reason is not None:
                    return
        finally:
            self._leave(writing)

    async def check(self) -> None:
        """Raises when the engine no longer computes: one token is written, unless it is at work."""
        if not self._thread.is_alive():
            raise RequestFailedError("the engine's thread is gone")
        if not self.stats.running:
            await self.write(Request(prompt=b"\n", max_tokens=1, temperature=0.0))

    def close(self) -> None:
        """Ends the thread; texts under way fail."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()

    def _enter(self, request: Request, caller: _Caller) -> Writing:
        with self._changed:
            if self._is_closed:
                raise RequestFailedError("the replica is going: ask again")
            scheduler = self._engine.scheduler
            if len(scheduler.waiting) >= self._max_waiting:
                raise RefusedError(
                    f"{self._max_waiting} texts wait already",
                    status=503,
                    retry_after_s=max(_RETRY_S, self._step_s * request.max_tokens),
                )
            writing = self._engine.add(request)
            self._callers[writing] = caller
            self._changed.notify()
        return writing

    def _leave(self, writing: Writing) -> None:
        with self._changed:
            self._callers.pop(writing, None)
            self._engine.cancel(writing)

    def _run(self) -> None:
        while self._wait():
            began_s = self._clock()
            self._step()
            self._step_s = self._clock() - began_s
        with self._changed:
            self._fail(list(self._callers), RequestFailedError("the replica is going: ask again"))

    def _wait(self) -> bool:
        """Until there is work; False when there will be none."""
        with self._changed:
            self._changed.wait_for(lambda: self._engine.is_busy or self._is_closed)
            return not self._is_closed

    def _step(self) -> None:
        with self._changed:
            work = self._engine.plan()
        try:
            tokens = self._engine.compute(work)
        except Exception:  # noqa: BLE001  whatever a model raises fails its texts alone
            _log.exception("a step of %d texts failed", len(work))
            with self._changed:
                self._fail([one.writing for one in work], RequestFailedError("the model failed"))
            return
        with self._changed:
            self._tell(self._engine.commit(work, tokens))

    def _fail(self, writings: list[Writing], error: RequestFailedError) -> None:
        for writing in writings:
            self._engine.cancel(writing)
            caller = self._callers.pop(writing, None)
            if caller is not None:
                _send([(caller, error)])

    def _tell(self, events: list[Event]) -> None:
        """Events to their callers: each loop is woken once a step."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[_Caller, Written | BaseException]]] = {}
        for event in events:
            caller = self._callers.get(event.writing)
            if caller is not None:
                told = Written(event.data, event.reason, 1)
                by_loop.setdefault(caller.loop, []).append((caller, told))
        for told_here in by_loop.values():
            _send(told_here)


def _send(told: list[tuple[_Caller, Written | BaseException]]) -> None:
    """Puts events into queues of one loop; a loop that is closed has no readers left."""

    def put() -> None:
        for caller, event in told:
            caller.events.put_nowait(event)

    loop = told[0][0].loop
    if not loop.is_closed():
        loop.call_soon_threadsafe(put)
