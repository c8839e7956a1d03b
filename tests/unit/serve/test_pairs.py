"""Comparisons wait for idle moments, find who fails, and reach the judge."""

from __future__ import annotations

import queue
import threading

from rayburst.models.judge import Limits, Pair
from rayburst.models.trials import Trial
from rayburst.serve.lineup import Lineup
from rayburst.serve.pairs import Pairs

EQUAL = Pair(failed=False, agreement=1.0, ratio=1.0)
Reported = tuple[Trial, str, list[Pair]]


def compare(production: str, candidate: str, text: bytes, candidate_first: bool) -> Pair | None:
    if text == b"odd":
        raise ValueError("the candidate cannot do this one")
    return None if text == b"nobody can" else EQUAL


class Bench:
    """A lineup whose candidate is on trial, and what its judge is told."""

    def __init__(self, *, is_idle: bool = True, shadow: bool = True) -> None:
        self.told: queue.Queue[Reported] = queue.Queue()
        self.idle = threading.Event()
        if is_idle:
            self.idle.set()
        self.lineup = Lineup("gpt@1")
        self.trial = Trial(
            number=1, version=2, weight=0.5, shadow=shadow, limits=Limits(), at_ms=0, id="a"
        )
        self.lineup.try_out("gpt@2", self.trial)
        self.pairs = Pairs(
            lineup=self.lineup,
            compare=compare,
            report=lambda *words: self.told.put(words),
            name=str,
            is_idle=self.idle.is_set,
        )

    def __enter__(self) -> Bench:
        self.pairs.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.pairs.stop()

    def reported(self, count: int) -> list[Pair]:
        found: list[Pair] = []
        while len(found) < count:
            of, production, pairs = self.told.get(timeout=20)
            assert (of, production) == (self.trial, "gpt@1")
            found += pairs
        return found


def test_what_was_asked_is_compared_and_told() -> None:
    with Bench() as bench:
        for text in (b"one", b"odd", b"nobody can", b"two"):
            bench.pairs.offer(text, None)
        bench.pairs.failed(bench.trial)
        found = bench.reported(4)
    assert found.count(EQUAL) == 2
    assert found.count(Pair(failed=True)) == 2


def test_a_comparison_waits_for_an_idle_moment_and_is_dropped_when_none_comes() -> None:
    with Bench(is_idle=False) as bench:
        bench.pairs.offer(b"one", None)
        waited = threading.Event()
        while bench.pairs.dropped == 0:
            assert not waited.wait(0.05)
        assert bench.pairs.taken == 0
        bench.idle.set()
        bench.pairs.offer(b"two", None)
        assert bench.reported(1) == [EQUAL]


def test_too_many_are_dropped_and_nobody_waits() -> None:
    bench = Bench()
    for _ in range(100):
        bench.pairs.offer(b"one", None)
    assert bench.pairs.dropped > 0


def test_without_shadow_only_what_a_candidate_answered_is_compared() -> None:
    with Bench(shadow=False) as bench:
        bench.pairs.offer(b"odd", None)
        bench.pairs.offer(b"one", bench.trial)
        assert bench.reported(1) == [EQUAL]
        assert bench.pairs.taken == 1
