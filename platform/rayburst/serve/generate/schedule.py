"""Who is read in the next step: continuous batching, decided token by token.

    scheduler = Scheduler(pool, Limits(context=256, max_running=32, step_tokens=256))
    scheduler.add(text)
    pieces = scheduler.plan()               # what to read now
    scheduler.commit(pieces, new_tokens)    # one new token for each piece that `emits`
    scheduler.remove(text)                  # at any time: its place and its blocks are free at once

Pure. A text is in one of these states:

- waiting: in the queue, without blocks. First come, first admitted, when a place and the blocks
  for all it has to read are there. Blocks that already hold its beginning are shared, not read.
- running: each step reads what it has not read. One that has read its prompt reads one token a
  step (decode); a prompt is read in pieces of what the decoding texts leave of `step_tokens`.
- preempted: blocks ran out, and it was the youngest. It gives them back and waits in front; what it
  has written stays, and is read again later (recompute). The oldest is never preempted, and the
  pool holds one text of full length, so it always comes to its end.
- sliding: longer than the model's context. Positions are absolute, so nothing of it can be kept:
  it has no blocks, and its last `context` tokens are read for each new one. The sliding texts
  take turns in what a step has left, at least one a step.
- gone: finished, or removed.

It knows no model, no clock, and no sampling.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from rayburst.serve.generate.blocks import BlockPool, chain, root

__all__ = ["Limits", "Piece", "Scheduler", "Text"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Counts of tokens and texts. `context` is what the model reads at most."""

    context: int
    max_running: int = 32
    step_tokens: int = 256
    reuse_prefixes: bool = True

    def __post_init__(self) -> None:
        for name in ("context", "max_running", "step_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: give 1 or more")


@dataclass(eq=False, slots=True)
class Text:
    """One text that is written: `tokens` begins with its prompt and grows to `most` tokens."""

    tokens: list[int]
    most: int
    salt: bytes = b""  # texts share blocks with those of the same salt only
    number: int = -1  # its place in the order of arrival
    read: int = 0  # tokens whose keys and values lie in its blocks
    blocks: list[int] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)  # of its whole blocks
    turn: int = 0  # the step that last read it while sliding
    preempted: int = 0  # times that it lost its blocks
    shared: int = 0  # tokens that it did not have to read
    is_gone: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """Tokens to read at positions `start`, `start + 1`, ...; sliding texts have no blocks."""

    text: Text
    tokens: list[int]
    start: int
    blocks: list[int]
    emits: bool  # its last token's logits give the next one


class Scheduler:
    """The texts of one model on one replica."""

    def __init__(self, pool: BlockPool, limits: Limits) -> None:
        if pool.count * pool.size < limits.context:
            raise ValueError(
                f"{pool.count} blocks of {pool.size} tokens do not hold one text of "
                f"{limits.context}: give {-(-limits.context // pool.size)} blocks or more"
            )
        self.pool, self.limits = pool, limits
        self.running: list[Text] = []  # in order of arrival
        self.waiting: deque[Text] = deque()
        self.preemptions = 0
        self._arrivals = 0
        self._step = 0

    def add(self, text: Text) -> None:
        """Puts a new text into the queue."""
        if not text.tokens:
            raise ValueError("the text is empty: give one token or more")
        if text.most <= len(text.tokens):
            raise ValueError(f"most={text.most}: give more than its {len(text.tokens)} tokens")
        text.number = self._arrivals
        self._arrivals += 1
        self.waiting.append(text)

    def remove(self, text: Text) -> bool:
        """Ends a text; False when it was gone already. Also while a plan is carried out."""
        if text.is_gone:
            return False
        text.is_gone = True
        self._free(text)
        if text in self.running:
            self.running.remove(text)
        else:
            self.waiting.remove(text)
        return True

    def plan(self) -> list[Piece]:
        """What to read now; empty when there is nothing. Carry it out before the next plan."""
        self._step += 1
        pieces: list[Piece] = []
        decoding = sum(self._left(t) == 1 for t in self.running if not self._slides(t))
        room = self.limits.step_tokens - decoding
        # The first prompt always moves on, however many decode.
        room = max(1, room)
        before = self.preemptions
        for text in list(self.running):
            if self._slides(text) or text not in self.running:
                continue
            left = self._left(text)
            number = left if left == 1 else min(left, room)
            if number and self._reserve(text, text.read + number):
                pieces.append(self._piece(text, number))
                room -= number if left > 1 else 0
        if self.preemptions == before:
            room = self._admit(pieces, room)
        self._slide(pieces, room)
        return pieces

    def commit(self, pieces: Sequence[Piece], new_tokens: Sequence[int]) -> None:
        """Takes over what was read, and one new token for each piece that emits, in order."""
        emitted = iter(new_tokens)
        for piece in pieces:
            text = piece.text
            token = next(emitted) if piece.emits else None
            if text.is_gone:
                continue
            if piece.blocks:
                text.read = piece.start + len(piece.tokens)
                self._keep(text)
            if token is None:
                continue
            text.tokens.append(token)
            if len(text.tokens) >= text.most:
                self.remove(text)
            elif self._slides(text):
                self._free(text)

    def _slides(self, text: Text) -> bool:
        return len(text.tokens) > self.limits.context

    def _left(self, text: Text) -> int:
        return len(text.tokens) - text.read

    def _piece(self, text: Text, number: int) -> Piece:
        stop = text.read + number
        return Piece(
            text=text,
            tokens=text.tokens[text.read : stop],
            start=text.read,
            blocks=list(text.blocks),
            emits=stop == len(text.tokens),
        )

    def _blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.pool.size)

    def _reserve(self, text: Text, upto: int) -> bool:
        """Blocks for the first `upto` tokens; the youngest lose theirs until there are enough."""
        missing = self._blocks_for(upto) - len(text.blocks)
        while missing > self.pool.available:
            victim = next(t for t in reversed(self.running) if t.blocks or t is text)
            self._preempt(victim)
            if victim is text:
                return False
        text.blocks += self.pool.take(max(0, missing)) or []
        return True

    def _preempt(self, text: Text) -> None:
        self._free(text)
        self.running.remove(text)
        self.waiting.appendleft(text)
        text.preempted += 1
        self.preemptions += 1

    def _free(self, text: Text) -> None:
        self.pool.release(text.blocks)
        text.blocks = []
        text.read = 0

    def _admit(self, pieces: list[Piece], room: int) -> int:
        """Takes from the queue what has a place and blocks; returns what is left of `room`."""
        while self.waiting and len(self.running) < self.limits.max_running and room > 0:
            text = self.waiting[0]
            if not self._slides(text):
                if not self._shares_and_fits(text):
                    break
                number = min(self._left(text), room)
                self._reserve(text, text.read + number)
                pieces.append(self._piece(text, number))
                room -= number
            self.waiting.popleft()
            self.running.append(text)
            self.running.sort(key=lambda t: t.number)
        return room

    def _shares_and_fits(self, text: Text) -> bool:
        """Gives a text the blocks that hold its beginning, if the others it needs are there."""
        if self.limits.reuse_prefixes:
            # The last token is read in any case: its logits are wanted.
            whole = (len(text.tokens) - 1) // self.pool.size
            text.blocks = self.pool.match(self._keys(text, whole))
        missing = self._blocks_for(len(text.tokens)) - len(text.blocks)
        if missing > self.pool.available:
            self._free(text)
            return False
        text.read = len(text.blocks) * self.pool.size
        text.shared += text.read
        return True

    def _keys(self, text: Text, number: int) -> list[bytes]:
        """The keys of a text's first whole blocks."""
        size = self.pool.size
        for place in range(len(text.keys), number):
            before = text.keys[-1] if text.keys else root(text.salt)
            text.keys.append(chain(before, text.tokens[place * size : (place + 1) * size]))
        return text.keys[:number]

    def _keep(self, text: Text) -> None:
        if self.limits.reuse_prefixes:
            keys = self._keys(text, text.read // self.pool.size)
            for block, key in zip(text.blocks, keys, strict=False):
                self.pool.keep(block, key)

    def _slide(self, pieces: list[Piece], room: int) -> None:
        """The sliding texts that waited longest for their turn."""
        sliding = [text for text in self.running if self._slides(text)]
        context = self.limits.context
        fitting = max(1, room // context)
        for text in sorted(sliding, key=lambda t: t.turn)[:fitting]:
            text.turn = self._step
            pieces.append(
                Piece(text=text, tokens=text.tokens[-context:], start=0, blocks=[], emits=True)
            )
