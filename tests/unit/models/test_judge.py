"""The judge of a candidate: its intervals hold, it decides, and seldom wrongly."""

from __future__ import annotations

import random

import pytest

from rayburst.models.judge import ConfidenceSequence, Judge, Limits, Pair


def pairs(seed: int, *, failing: float = 0.0, agreement: float = 0.99, ratio: float = 1.0):  # type: ignore[no-untyped-def]
    """Requests of a candidate with these means; times scatter by a fifth."""
    rng = random.Random(seed)
    while True:
        if rng.random() < failing:
            yield Pair(failed=True)
        else:
            share = min(1.0, max(0.0, rng.gauss(agreement, 0.02)))
            yield Pair(failed=False, agreement=share, ratio=ratio * rng.lognormvariate(0, 0.2))


def judged(limits: Limits, seed: int, most: int, **candidate: float) -> Judge:
    judge = Judge(limits)
    for pair, _ in zip(pairs(seed, **candidate), range(most), strict=False):
        judge.take(pair)
        if judge.decision is not None:
            break
    return judge


def test_the_interval_holds_the_mean_at_all_times() -> None:
    wrong = 0
    for seed in range(200):
        rng = random.Random(seed)
        sequence = ConfidenceSequence(alpha=0.1)
        for _ in range(300):
            sequence.take(float(rng.random() < 0.3))
        wrong += not sequence.low <= 0.3 <= sequence.high
    assert wrong <= 20, "a tenth of all, and by the paper fewer"
    assert sequence.high - sequence.low < 0.25, "and it is no excuse of an interval"


@pytest.mark.parametrize(
    ("candidate", "within", "why"),
    [
        ({"failing": 1.0}, 30, "fails on 100.0% of requests"),
        ({"failing": 0.2}, 300, "fails on"),
        ({"agreement": 0.5}, 60, "agrees at"),
        ({"agreement": 0.85}, 300, "agrees at"),
        ({"ratio": 3.0}, 60, "times as long"),
    ],
)
def test_a_bad_candidate_is_rolled_back(candidate: dict[str, float], within: int, why: str) -> None:
    for seed in range(10):
        judge = judged(Limits(), seed, within, **candidate)
        assert judge.decision is not None and judge.decision.kind == "rollback", judge.figures
        assert why in judge.decision.why


def test_a_good_candidate_is_promoted_and_seldom_rolled_back() -> None:
    kinds = []
    for seed in range(60):
        judge = judged(Limits(), seed, 600)
        assert judge.decision is not None, judge.figures
        kinds.append(judge.decision.kind)
    assert kinds.count("rollback") <= 3, "a risk of 5%"


def test_one_beyond_a_limit_is_seldom_promoted() -> None:
    promoted = 0
    for seed in range(30):
        judge = judged(Limits(errors=0.05), seed, 1500, failing=0.06)
        promoted += judge.decision is not None and judge.decision.kind == "promote"
    assert promoted <= 2


def test_what_is_decided_stays() -> None:
    judge = Judge(Limits())
    while judge.decision is None:
        judge.take(Pair(failed=True))
    first = judge.decision
    for _ in range(200):
        judge.take(Pair(failed=False, agreement=1.0, ratio=1.0))
    assert judge.decision is first
    assert first.figures["errors"] == 1.0


def test_a_number_that_is_no_share_is_refused() -> None:
    with pytest.raises(ValueError, match="no number from 0 to 1"):
        ConfidenceSequence(alpha=0.05).take(1.5)
