"""One step after the other: plan, read, draw, take over.

    engine = Engine(model, EngineOptions(max_running=32))
    writing = engine.add(Request(prompt=b"def main(", temperature=0))
    while engine.is_busy:
        for event in engine.step():      # what is new of each text, and why it ended
            ...
    engine.cancel(writing)               # at any time: its place and blocks are free at once

`step` is `plan`, `compute` and `commit`. Only `compute` takes long; it touches nothing that
`add` and `cancel` change, so these may be called from elsewhere while it runs, as service.py does.
Blocking, and without any clock or loop of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from rayburst.serve.generate.blocks import BlockPool
from rayburst.serve.generate.paged import PagedCache
from rayburst.serve.generate.request import Request
from rayburst.serve.generate.sampling import draw
from rayburst.serve.generate.schedule import Limits, Piece, Scheduler, Text
from rayburst.serve.generate.stops import StopFinder
from rayburst.train.gpt import GPT

__all__ = ["Engine", "EngineOptions", "Event", "Reason", "Work", "Writing"]

Reason = Literal["stop", "length"]


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineOptions:
    """Size of the engine.

    Attributes:
        max_running: texts that are written together.
        step_tokens: tokens that a step reads, about; more make prompts faster and steps slower.
        block_tokens: tokens in a block of the cache.
        blocks: blocks of the cache; none: enough for `max_running` texts of full length.
        reuse_prefixes: texts that begin alike share the blocks of their common beginning.
    """

    max_running: int = 32
    step_tokens: int = 256
    block_tokens: int = 16
    blocks: int | None = None
    reuse_prefixes: bool = True


@dataclass(eq=False, slots=True)
class Writing:
    """A request on its way."""

    request: Request
    text: Text
    generator: torch.Generator
    stops: StopFinder
    written: int = 0  # tokens drawn, those of a stop text too


@dataclass(frozen=True, slots=True)
class Event:
    """What is new of a text: bytes that may be shown, and why it ended, if it did."""

    writing: Writing
    data: bytes
    reason: Reason | None


class Engine:
    """A GPT that writes many texts at a time."""

    def __init__(self, model: GPT, options: EngineOptions | None = None) -> None:
        options = options or EngineOptions()
        config = model.config
        if config.vocab_size != 256:
            raise ValueError(f"vocab_size={config.vocab_size}: texts are bytes, it must be 256")
        size = min(options.block_tokens, config.block_size)
        each = -(-config.block_size // size)
        count = options.max_running * each if options.blocks is None else options.blocks
        self.model, self.options = model, options
        self.pool = BlockPool(count=count, size=size)
        self.scheduler = Scheduler(
            self.pool,
            Limits(
                context=config.block_size,
                max_running=options.max_running,
                step_tokens=options.step_tokens,
                reuse_prefixes=options.reuse_prefixes,
            ),
        )
        self.cache = PagedCache(model, blocks=count, size=size)
        self.tokens_written = 0
        self._writing: dict[Text, Writing] = {}

    @property
    def is_busy(self) -> bool:
        """Whether a text waits or runs."""
        return bool(self._writing)

    def add(self, request: Request) -> Writing:
        """Queues a request."""
        tokens = list(request.prompt)
        text = Text(tokens=tokens, most=len(tokens) + request.max_tokens, salt=request.salt)
        writing = Writing(
            request=request,
            text=text,
            generator=torch.Generator().manual_seed(request.seed),
            stops=StopFinder(request.stop),
        )
        self.scheduler.add(text)
        self._writing[text] = writing
        return writing

    def cancel(self, writing: Writing) -> bool:
        """Ends a request; False when it had ended. Nothing more of it is told."""
        self._writing.pop(writing.text, None)
        return self.scheduler.remove(writing.text)

    def step(self) -> list[Event]:
        """One token more for each text whose turn it is."""
        pieces = self.plan()
        return self.commit(pieces, self.compute(pieces))

    def plan(self) -> list[Work]:
        """What the next step reads, and for whom."""
        return [Work(piece, self._writing[piece.text]) for piece in self.scheduler.plan()]

    def compute(self, work: Sequence[Work]) -> list[int]:
        """A token for each piece that emits. The long part; it changes the cache alone."""
        if not work:
            return []
        logits = self.cache.read([one.piece for one in work])
        telling = [one.writing for one in work if one.piece.emits]
        if not telling:
            return []
        requests = [writing.request for writing in telling]
        return draw(logits, requests, [writing.generator for writing in telling])

    def commit(self, work: Sequence[Work], tokens: Sequence[int]) -> list[Event]:
        """Takes the tokens over; what is new of each text."""
        telling = [one.writing for one in work if one.piece.emits]
        alive = [not writing.text.is_gone for writing in telling]
        self.scheduler.commit([one.piece for one in work], tokens)
        return [
            self._event(writing, token)
            for writing, token, is_alive in zip(telling, tokens, alive, strict=True)
            if is_alive
        ]

    def _event(self, writing: Writing, token: int) -> Event:
        self.tokens_written += 1
        writing.written += 1
        data = writing.stops.feed(token)
        reason: Reason | None = None
        if writing.stops.is_found:
            reason = "stop"
            self.scheduler.remove(writing.text)
        elif writing.text.is_gone:
            reason = "length"
            data += writing.stops.rest()
        if reason is not None:
            del self._writing[writing.text]
        return Event(writing, data, reason)


@dataclass(frozen=True, slots=True)
class Work:
    """A piece to read and the request that it is of."""

    piece: Piece
    writing: Writing
