"""Stop texts end a text, and no part of them is ever shown."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rayburst.serve.generate.stops import StopFinder


def shown(text: bytes, stops: tuple[bytes, ...]) -> tuple[list[bytes], bool]:
    finder = StopFinder(stops)
    pieces = []
    for byte in text:
        pieces.append(finder.feed(byte))
        if finder.is_found:
            return pieces, True
    return [*pieces, finder.rest()], False


def test_what_may_become_a_stop_is_held_back() -> None:
    assert shown(b"a\nb\n\nc", (b"\n\n",)) == ([b"a", b"", b"\nb", b"", b""], True)
    assert shown(b"a\n", (b"\n\n",)) == ([b"a", b"", b"\n"], False)
    assert shown(b"abc", ()) == ([b"a", b"b", b"c", b""], False)


@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_the_text_ends_before_the_first_stop(text: str, stops: list[str]) -> None:
    pieces, is_found = shown(text.encode(), tuple(stop.encode() for stop in stops))
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    assert is_found == bool(ends)
    whole = text[: min(ends)] if ends else text
    longest = max((len(s) for s in stops if whole.endswith(s)), default=0) if ends else 0
    assert b"".join(pieces).decode() == whole[: len(whole) - longest]
