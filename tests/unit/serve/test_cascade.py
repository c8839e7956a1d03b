"""A cascade asks its teacher where the student is unsure, and never waits for it in vain."""

from __future__ import annotations

import asyncio
import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from ray.exceptions import ActorDiedError

from rayburst.errors import KeyRefusedError, LateError, RefusedError, RequestFailedError
from rayburst.serve.cascade import Cascade, CascadeOptions, confidence_of
from rayburst.serve.decode import likeliest
from rayburst.train.gpt import GPT


class Model:
    """Answers what it was made with, or raises it; notes the deadlines it was given."""

    def __init__(self, *answers: Any) -> None:
        self.answers, self.deadlines_ms = list(answers), list[float]()

    async def __call__(self, value: Any, deadline_ms: float) -> Any:
        self.deadlines_ms.append(deadline_ms)
        answer = self.answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer


class Clock:
    """Seconds that pass by hand."""

    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def pair(student: Any, teacher: Any, **options: Any) -> Cascade:
    return Cascade(student, teacher, CascadeOptions(**{"threshold": 0.7, **options}), clock=Clock())


SURE, UNSURE, BETTER = [0.1, 0.9], [0.4, 0.6], [1.0, 0.0]


def test_only_what_the_student_is_unsure_of_goes_on() -> None:
    teacher = Model(BETTER)
    cascade = pair(Model(SURE, UNSURE), teacher)
    first = asyncio.run(cascade.ask("a"))
    assert (first.value, first.by, first.why, first.confidence) == (SURE, "student", "sure", 0.9)
    assert teacher.deadlines_ms == []
    second = asyncio.run(cascade.ask("b"))
    assert (second.value, second.by, second.why) == (BETTER, "teacher", "escalated")
    assert second.confidence == 0.6  # still the student's
    assert cascade.counts == {"sure": 1, "escalated": 1}


@pytest.mark.parametrize(
    ("failure", "why"),
    [
        (RefusedError("full", status=503, retry_after_s=1), "teacher-refused"),
        (LateError("late"), "teacher-late"),
        (ValueError("a bug"), "teacher-failed"),
        (ActorDiedError(), "teacher-gone"),
    ],
)
def test_the_student_stands_in_for_a_teacher_that_cannot(failure: Exception, why: str) -> None:
    answer = asyncio.run(pair(Model(UNSURE), Model(failure)).ask("a"))
    assert (answer.value, answer.by, answer.why) == (UNSURE, "student", why)


def test_a_deadline_is_passed_on_less_what_is_spent() -> None:
    clock = Clock()

    async def slow(value: Any, deadline_ms: float) -> Any:
        clock.now_s += 0.06
        return UNSURE

    teacher = Model(BETTER)
    cascade = Cascade(slow, teacher, CascadeOptions(threshold=0.7, slo_ms=100), clock=clock)
    assert asyncio.run(cascade.ask("a")).by == "teacher"
    assert teacher.deadlines_ms == [pytest.approx(35)]  # 95 of 100, and 60 are gone
    late = asyncio.run(cascade.ask("a", deadline_s=0.05))
    assert (late.why, len(teacher.deadlines_ms)) == ("teacher-late", 1)  # not even asked


def test_a_teacher_that_never_answers_is_given_up_in_time_and_rests() -> None:
    clock, asked = Clock(), []

    async def silent(value: Any, deadline_ms: float) -> Any:
        asked.append(value)
        await asyncio.get_running_loop().create_future()

    async def three() -> list[str]:
        student = Model(UNSURE, UNSURE, UNSURE)
        options = CascadeOptions(threshold=0.7, slo_ms=20, rest_s=2)
        cascade = Cascade(student, silent, options, clock=clock)
        whys = [(await cascade.ask(1)).why, (await cascade.ask(2)).why]
        clock.now_s += 3
        return [*whys, (await cascade.ask(3)).why]

    assert asyncio.run(three()) == ["teacher-late", "teacher-resting", "teacher-late"]
    assert asked == [1, 3]


def test_what_the_student_refuses_is_refused() -> None:
    refusal = RefusedError("full", status=503, retry_after_s=2.5)
    with pytest.raises(RefusedError, match="full"):
        asyncio.run(pair(Model(refusal), Model(BETTER)).ask("a"))
    again = pickle.loads(pickle.dumps(refusal))  # as it travels from a replica
    assert (str(again), again.status, again.retry_after_s) == ("full", 503, 2.5)
    no_key = pickle.loads(pickle.dumps(KeyRefusedError("no key", status=401)))
    assert (str(no_key), no_key.status) == ("no key", 401)


@pytest.mark.parametrize("form", [list, np.array, torch.tensor, lambda p: {"probabilities": p}])
def test_confidence_is_of_whatever_holds_probabilities(form: Any) -> None:
    assert confidence_of(form([0.2, 0.7, 0.1])) == pytest.approx(0.7)
    assert confidence_of(form([0.2, 0.7, 0.1]), "margin") == pytest.approx(0.5)
    assert confidence_of(form([0.7]), "margin") == pytest.approx(0.7)


@pytest.mark.parametrize(
    "wrong", ["text", {"label": "cat"}, [], [math.nan], [3.0, 4.0], None, [[1]]]
)
def test_an_answer_without_probabilities_says_what_is_wanted(wrong: Any) -> None:
    with pytest.raises(RequestFailedError, match="a mapping with a field `probabilities`"):
        confidence_of(wrong)


def test_the_likeliest_bytes_are_those_of_the_model_alone() -> None:
    torch.manual_seed(0)
    model = GPT.shaped("micro", n_embd=32, block_size=16).eval()
    texts = [b"def", b"a much longer text than the block", b"x"]
    found = likeliest(model, texts, 3)
    for text, told in zip(texts, found, strict=True):
        with torch.no_grad():
            last = model(torch.tensor([list(text[-16:])]))[0][0, -1].softmax(-1)
        assert [b for b, _ in told] == last.topk(3).indices.tolist()
        assert [p for _, p in told] == pytest.approx(last.topk(3).values.tolist(), rel=1e-4)
