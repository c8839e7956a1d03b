"""A cheap model answers where it is sure, a better one where it is not.

    asked = Cascade(student, teacher, CascadeOptions(threshold=0.7))
    answer = await asked.ask(value, deadline_s=0.1)
    answer.value, answer.by, answer.why        # ..., "teacher", "escalated"

`student` and `teacher` are calls `(value, deadline_ms) -> answer`, such as handles of two models of
`@rb.serve.model`; `rayburst.serve.cascade_front` makes a Serve application of them. An answer holds
probabilities: it is an array of them, or a mapping with a field `probabilities`.

The student's answer is there before the teacher is asked, so it is what is given when the teacher
refuses, fails, is gone, or would be late: `why` says so. A teacher that gave no answer at all rests
for a while and is not asked meanwhile. What the student itself refuses is refused. Knows no Ray and
no HTTP.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from rayburst.errors import LateError, RefusedError, RequestError, RequestFailedError

__all__ = ["Answer", "Cascade", "CascadeOptions", "Why", "cause_of", "confidence_of"]

Ask = Callable[[Any, float], Awaitable[Any]]
How = Literal["top1", "margin"]
Why = Literal[
    "sure", "escalated", "teacher-refused", "teacher-late", "teacher-failed", "teacher-gone",
    "teacher-resting",
]  # fmt: skip
_FOR_THE_WAY = 0.05  # of a deadline: what the student's answer needs once the teacher is given up


class CascadeOptions(BaseModel):
    """When the better model is asked.

    `confidence`: "top1" is the largest probability of the student's answer, "margin" what it is
    above the second. Below `threshold` the teacher answers.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    threshold: float = Field(ge=0, le=1, description="less sure answers go on to the teacher")
    confidence: How = Field(default="top1", description="top1 or margin")
    slo_ms: float = Field(default=100.0, gt=0, description="a request is answered within")
    rest_s: float = Field(
        default=2.0, ge=0, description="a teacher that gave no answer is not asked for so long"
    )


class Answer(NamedTuple):
    """What was answered, by whom and why. `confidence` is the student's."""

    value: Any
    by: Literal["student", "teacher"]
    why: Why
    confidence: float


def confidence_of(answer: Any, how: How = "top1") -> float:
    """How sure an answer is, 0 to 1. RequestFailedError when it holds no probabilities."""
    held: Any = answer.get("probabilities") if isinstance(answer, Mapping) else answer
    held = held.tolist() if hasattr(held, "tolist") else held
    try:
        if not isinstance(held, Sequence) or isinstance(held, str):
            raise TypeError(type(answer).__name__)
        first, second, *_ = (*sorted(map(float, held), reverse=True), 0.0)
        if not (0 <= first <= 1 + 1e-6):  # a NaN is not either
            raise ValueError(first)
    except (TypeError, ValueError) as error:
        raise RequestFailedError(
            f"the student's answer holds no probabilities ({error}): a model of a cascade returns "
            "an array of them for each request, or a mapping with a field `probabilities`"
        ) from None
    return min(first, 1.0) if how == "top1" else first - second


class Cascade:
    """Two models as one. `counts` are answers so far by `why`."""

    def __init__(
        self,
        student: Ask,
        teacher: Ask,
        options: CascadeOptions,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._student, self._teacher, self.options, self._clock = student, teacher, options, clock
        self._rests_until_s = -math.inf
        self.counts: Counter[str] = Counter()

    async def ask(self, value: Any, *, deadline_s: float | None = None) -> Answer:
        """The answer to one value within `deadline_s`, by default the promise.

        RequestError when the student refuses or fails.
        """
        began_s = self._clock()
        whole_s = deadline_s or self.options.slo_ms / 1000
        first = await self._student(value, 1000 * whole_s)
        sure = confidence_of(first, self.options.confidence)
        if sure >= self.options.threshold:
            answer = Answer(first, "student", "sure", sure)
        else:
            left_s = whole_s * (1 - _FOR_THE_WAY) - (self._clock() - began_s)
            answer = await self._escalated(value, first, sure, left_s)
        self.counts[answer.why] += 1
        return answer

    async def _escalated(self, value: Any, first: Any, sure: float, left_s: float) -> Answer:
        """The teacher's answer, or the student's and why."""
        why: Why
        if self._clock() < self._rests_until_s:
            return Answer(first, "student", "teacher-resting", sure)
        if left_s <= 0:
            return Answer(first, "student", "teacher-late", sure)
        try:
            async with asyncio.timeout(left_s):
                better = await self._teacher(value, 1000 * left_s)
            return Answer(better, "teacher", "escalated", sure)
        except TimeoutError:
            self._rest()
            why = "teacher-late"
        except Exception as error:  # noqa: BLE001  the student's answer is there in any case
            why = _why(cause_of(error))
            if why == "teacher-gone":
                self._rest()
        return Answer(first, "student", why, sure)

    def _rest(self) -> None:
        self._rests_until_s = self._clock() + self.options.rest_s


def cause_of(error: BaseException) -> BaseException:
    """What a model raised, where Ray has wrapped it."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, BaseException) else error


def _why(error: BaseException) -> Why:
    if isinstance(error, RefusedError):
        return "teacher-refused"
    if isinstance(error, LateError):
        return "teacher-late"
    # What is wrapped was raised by the model; Ray's own errors mean that there is no replica.
    is_of_ray = type(error).__module__.startswith("ray.")
    return "teacher-gone" if is_of_ray and not isinstance(error, RequestError) else "teacher-failed"
