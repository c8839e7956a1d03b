"""A cascade of two served models as a Ray Serve application.

    import rayburst as rb
    from rayburst.serve.cascade_front import cascade

    app = cascade(Small.part(), Large.part(), like=Small, threshold=0.7, slo_ms=200)

`POST /predict` takes what the models take and answers as they do. Each answer says who gave it:
`x-rayburst-answered-by` (student, teacher), `x-rayburst-cascade` (why: sure, escalated, or
teacher-refused, -late, -failed, -gone, -resting where the student stands in) and
`x-rayburst-confidence` (the student's). A request's `x-rayburst-deadline-ms` is passed on, less
what is spent. GET /healthz, /cascade (options, answers by why), /metrics.

The three parts scale and fail on their own; student and teacher batch as they do alone. The front
takes Serve's stock path: what it decides needs an answer first.
"""

from __future__ import annotations

import asyncio
import math
import time
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry, Counter, generate_latest
from pydantic import ValidationError
from ray import serve
from ray.serve.schema import LoggingConfig
from ray.util.metrics import Counter as RayCounter
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from rayburst.errors import BadRequestError, ModelError, RefusedError, RequestError
from rayburst.serve.asgi import read_body
from rayburst.serve.cascade import Answer, Ask, Cascade, CascadeOptions, cause_of
from rayburst.serve.codec import JSON, Codec
from rayburst.serve.endpoint import DEADLINE
from rayburst.serve.options import ModelOptions
from rayburst.serve.served import Served, key_gate

__all__ = ["CascadeFront", "cascade"]

_LONGEST_MS = 3_600_000.0


def cascade(
    student: Any,
    teacher: Any,
    *,
    like: Served,
    name: str = "Cascade",
    replicas: int = 1,
    cpus: float = 0.0,
    serving: ModelOptions | None = None,
    **options: Any,
) -> Any:
    """The Serve application that asks `student`, and `teacher` where it is not sure.

    Args:
        student: a part (`Small.part()`) or a handle of a model that runs.
        teacher: likewise; it takes what the student takes.
        like: the served model whose `predict` says what a request holds.
        cpus: CPUs that the front asks Ray for.
        serving: of the front: `keys` (off loopback a request needs one), `max_body_bytes`.
        options: those of `CascadeOptions`: threshold, confidence, slo_ms, rest_s.

    Raises:
        ModelError: an option cannot be used.
    """
    try:
        parsed = CascadeOptions(**options)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        known = ", ".join(CascadeOptions.model_fields)
        raise ModelError(
            f"option {'.'.join(map(str, first['loc']))}: {first['msg']}; a cascade has: {known}"
        ) from None
    deployment = serve.deployment(
        serve.ingress()(CascadeFront),
        name=name,
        num_replicas=replicas,
        ray_actor_options={"num_cpus": cpus},
        max_ongoing_requests=1_000_000,  # student and teacher refuse long before
        health_check_period_s=5,
        logging_config=LoggingConfig(enable_access_log=False),
        max_constructor_retry_count=2,
    )
    return deployment.bind(student, teacher, like.cls, parsed, serving or ModelOptions(), name)


class CascadeFront:
    """One replica of the front; its models are asked by handle."""

    def __init__(
        self,
        student: Any,
        teacher: Any,
        like: type,
        options: CascadeOptions,
        serving: ModelOptions,
        name: str,
    ) -> None:
        self._cascade = Cascade(_by_handle(student), _by_handle(teacher), options)
        self._codec, self._serving = Codec.of(like), serving
        self._gate = key_gate(serving, name)
        self._metrics = CollectorRegistry()
        words = "Answers of a cascade by who gave them, and why"
        self._answers = Counter(
            "rayburst_cascade_answers", words, ["by", "why"], registry=self._metrics
        )
        self._of_ray = RayCounter(
            "rayburst_cascade_answers", description=words, tag_keys=("cascade", "by", "why")
        )
        self._of_ray.set_default_tags({"cascade": name})

    def __serve_build_asgi_app__(self) -> Starlette:
        """Serve calls this once."""
        return Starlette(
            routes=[
                Route("/predict", self._predict, methods=["POST"]),
                Route("/healthz", self._healthz),
                Route("/cascade", self._about),
                Route("/metrics", self._page),
            ]
        )

    async def predict(self, value: Any, *, deadline_ms: float | None = None) -> Any:
        """The answer alone, for those who ask by handle."""
        deadline_s = None if deadline_ms is None else deadline_ms / 1000
        return (await self._ask(value, deadline_s)).value

    async def _ask(self, value: Any, deadline_s: float | None) -> Answer:
        answer = await self._cascade.ask(value, deadline_s=deadline_s)
        self._answers.labels(answer.by, answer.why).inc()
        self._of_ray.inc(tags={"by": answer.by, "why": answer.why})
        return answer

    async def _predict(self, request: Request) -> Response:
        try:
            headers = dict(request.scope["headers"])
            if self._gate is not None:
                self._gate.tenant(headers, time.monotonic())
            deadline_s = _deadline_s(headers)
            body = await read_body(request, self._serving.max_body_bytes)
            if isinstance(body, Response):
                return body
            value = self._codec.decode(body, self._kind(headers))
            answer = await self._ask(value, deadline_s)
        except Exception as error:  # noqa: BLE001  every failure is an answer
            return _failure(cause_of(error))
        told = {
            "x-rayburst-answered-by": answer.by,
            "x-rayburst-cascade": answer.why,
            "x-rayburst-confidence": f"{answer.confidence:.4f}",
        }
        return Response(self._codec.encode(answer.value, JSON), media_type=JSON, headers=told)

    def _kind(self, headers: dict[bytes, bytes]) -> str:
        given = headers.get(b"content-type", JSON.encode()).split(b";")[0].strip().lower()
        kind = given.decode("latin-1")
        if kind not in self._codec.kinds:
            allowed = ", ".join(self._codec.kinds)
            raise BadRequestError(f"content-type {kind[:80]!r} is not taken; send {allowed}")
        return kind

    async def _healthz(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def _about(self, request: Request) -> Response:
        counts = self._cascade.counts
        return JSONResponse(
            {**self._cascade.options.model_dump(), "answers": dict(sorted(counts.items()))}
        )

    async def _page(self, request: Request) -> Response:
        return Response(generate_latest(self._metrics), media_type="text/plain; version=0.0.4")


def _by_handle(handle: Any) -> Ask:
    async def ask(value: Any, deadline_ms: float) -> Any:
        response = handle.predict.remote(value, deadline_ms=deadline_ms)
        try:
            return await response
        except asyncio.CancelledError:
            response.cancel()
            raise

    return ask


def _deadline_s(headers: dict[bytes, bytes]) -> float | None:
    if DEADLINE not in headers:
        return None
    try:
        given = float(headers[DEADLINE])
    except ValueError:
        given = math.nan
    if not 0.001 <= given <= _LONGEST_MS:
        raise BadRequestError(
            f"header {DEADLINE.decode()} is {headers[DEADLINE][:40]!r}; give 0.001 to 3600000"
        )
    return given / 1000


def _failure(error: BaseException) -> Response:
    status = error.status if isinstance(error, RequestError) else 500
    why = str(error) if isinstance(error, RequestError) else "the student failed on this request"
    headers = {}
    if isinstance(error, RefusedError):
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s)))
    body = msgspec.json.encode({"error": why, "status": status})
    return Response(body, status, headers, media_type=JSON)
