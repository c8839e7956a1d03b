"""Who is read when: admission, pieces of prompts, preemption, removal."""

from __future__ import annotations

import pytest

from rayburst.serve.generate.blocks import BlockPool
from rayburst.serve.generate.schedule import Limits, Piece, Scheduler, Text


def scheduler(*, blocks: int = 8, size: int = 4, **limits: int) -> Scheduler:
    words = {"context": 16, "max_running": 4, "step_tokens": 16, **limits}
    return Scheduler(BlockPool(count=blocks, size=size), Limits(**words))


def text(length: int, more: int = 4, *, first: int = 0, salt: bytes = b"") -> Text:
    return Text(tokens=[first + n for n in range(length)], most=length + more, salt=salt)


def step(made: Scheduler) -> list[Piece]:
    pieces = made.plan()
    made.commit(pieces, [99] * sum(piece.emits for piece in pieces))
    return pieces


def read(pieces: list[Piece]) -> list[tuple[int, int, int]]:
    """Number of the text, first position, tokens of each piece."""
    return [(piece.text.number, piece.start, len(piece.tokens)) for piece in pieces]


def test_a_text_that_comes_joins_those_that_are_written_at_the_next_step() -> None:
    made = scheduler()
    made.add(text(3))
    assert read(step(made)) == [(0, 0, 3)]
    made.add(text(5, first=50))
    assert read(step(made)) == [(0, 3, 1), (1, 0, 5)]
    assert read(step(made)) == [(0, 4, 1), (1, 5, 1)]


def test_a_text_that_ends_leaves_and_the_next_has_its_place() -> None:
    made = scheduler(max_running=1)
    made.add(text(3, more=2))
    made.add(text(2, more=1, first=50))
    assert read(step(made) + step(made)) == [(0, 0, 3), (0, 3, 1)]
    assert read(step(made)) == [(1, 0, 2)]
    assert step(made) == []
    assert made.pool.available == 8


def test_a_long_prompt_is_read_in_pieces_and_does_not_hold_up_who_decodes() -> None:
    made = scheduler(step_tokens=5)
    made.add(text(3, more=9))
    step(made)
    made.add(text(10, first=50))
    assert read(step(made)) == [(0, 3, 1), (1, 0, 4)]
    assert read(step(made)) == [(0, 4, 1), (1, 4, 4)]
    (decode, rest) = step(made)
    assert (decode.emits, read([rest]), rest.emits) == (True, [(1, 8, 2)], True)


def test_a_common_beginning_is_read_once() -> None:
    made = scheduler()
    made.add(text(10))
    step(made)
    made.add(text(10))
    (_, piece) = step(made)
    assert read([piece]) == [(1, 8, 2)]
    first, second = made.running
    assert first.blocks[:2] == second.blocks[:2]
    assert [made.pool.users(block) for block in first.blocks] == [2, 2, 1]
    assert second.shared == 8


def test_a_prompt_that_is_all_there_still_reads_its_last_token() -> None:
    made = scheduler()
    made.add(text(8))
    step(made)
    made.add(text(8))
    assert read(step(made)) == [(0, 8, 1), (1, 4, 4)]


def test_other_salts_and_no_reuse_share_nothing() -> None:
    made = scheduler(blocks=12)
    made.add(text(10, salt=b"ads"))
    step(made)
    made.add(text(10, salt=b"search"))
    assert read(step(made))[1] == (1, 0, 10)
    plain = scheduler(reuse_prefixes=False)
    plain.add(text(10))
    step(plain)
    plain.add(text(10))
    assert read(step(plain))[1] == (1, 0, 10)


def test_when_blocks_run_out_the_youngest_gives_way_and_comes_again() -> None:
    made = scheduler(blocks=4, size=2, context=8)
    old, young = text(3, more=5), text(3, more=5, first=50)
    made.add(old)
    made.add(young)
    step(made)
    step(made)  # both have five tokens now and read the fifth next: a third block for each
    assert read(step(made)) == [(0, 4, 1)]
    assert (young.preempted, young.blocks, list(made.waiting)) == (1, [], [young])
    while not young.is_gone:
        step(made)
    assert (len(old.tokens), len(young.tokens)) == (8, 8)
    assert old.preempted == 0
    assert made.pool.available == 4


def test_nobody_overtakes_a_text_that_waits_for_blocks() -> None:
    made = scheduler(blocks=4, size=4)
    made.add(text(9, more=1))
    made.add(text(9, more=1, first=50))
    made.add(text(2, more=1, first=70))
    assert read(step(made)) == [(0, 0, 9)]
    assert read(step(made)) == [(1, 0, 9), (2, 0, 2)]


def test_a_removed_text_frees_its_place_and_blocks_at_once_also_in_mid_step() -> None:
    made = scheduler(blocks=4, max_running=1)
    gone, waits = text(14), text(14, first=50)
    made.add(gone)
    made.add(waits)
    step(made)
    pieces = made.plan()
    assert made.remove(gone)
    assert made.pool.available == 4
    made.commit(pieces, [99])
    assert len(gone.tokens) == 15  # what came of the step under way is dropped
    assert read(step(made)) == [(1, 0, 14)]
    assert not made.remove(gone)
    other = text(3)
    made.add(other)
    assert made.remove(other)
    assert not made.waiting


def test_texts_beyond_the_context_hold_no_blocks_and_take_turns() -> None:
    made = scheduler(step_tokens=16)
    for first in (0, 50):
        made.add(text(20, more=3, first=first))
    made.add(text(2, more=9, first=90))
    turns = [[piece.text.number for piece in step(made)] for _ in range(6)]
    assert turns == [[2, 0], [2, 1], [2, 0], [2, 1], [2, 0], [2, 1]]
    assert made.pool.available == 6  # two are of the text that fits
    assert [t.number for t in made.running] == [2]


def test_a_text_that_outgrows_the_context_gives_its_blocks_back() -> None:
    made = scheduler()
    made.add(text(15, more=3))
    assert read(step(made) + step(made)) == [(0, 0, 15), (0, 15, 1)]
    assert made.pool.available == 8
    (piece,) = step(made)
    assert (piece.blocks, piece.start, len(piece.tokens)) == ([], 0, 16)
    assert piece.tokens[-1] == 99


def test_what_cannot_be_scheduled_is_refused() -> None:
    with pytest.raises(ValueError, match="give 4 blocks or more"):
        scheduler(blocks=3)
    with pytest.raises(ValueError, match="step_tokens=0"):
        scheduler(step_tokens=0)
    with pytest.raises(ValueError, match="the text is empty"):
        scheduler().add(Text(tokens=[], most=3))
    with pytest.raises(ValueError, match="give more than its 3 tokens"):
        scheduler().add(text(3, more=0))
