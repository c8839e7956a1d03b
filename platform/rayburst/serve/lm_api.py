"""The HTTP face of a served language model: routes, bodies, and errors that help.

`build_api(service)` gives a FastAPI application over anything that can generate and score.
It knows no Ray and no torch; OpenAPI is at /openapi.json, readable at /docs.
"""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Annotated, Any, NamedTuple, Protocol

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rayburst.errors import RefusedError, RequestError

__all__ = [
    "Answering",
    "GenerateRequest",
    "GenerateResponse",
    "LanguageModelService",
    "ModelInfo",
    "RungInfo",
    "ScoreRequest",
    "ScoreResponse",
    "Scored",
    "TrialInfo",
    "build_api",
]

MAX_TEXT = 65_536
MAX_NEW_TOKENS = 1_024
_TURN = "rayburst.turn"  # of a request, in its ASGI scope


class GenerateRequest(BaseModel):
    """Text to continue, and how."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    prompt: str = Field(min_length=1, max_length=MAX_TEXT, description="text to continue")
    max_new_tokens: int = Field(
        default=64, ge=1, le=MAX_NEW_TOKENS, description="bytes to write; a token is a byte"
    )
    temperature: float = Field(
        default=1.0, ge=0.0, le=5.0, description="0 takes the likeliest byte each time"
    )
    top_k: int | None = Field(
        default=None, ge=1, le=256, description="sample among the k likeliest bytes only"
    )
    seed: int | None = Field(
        default=None, ge=0, lt=2**63, description="the same seed gives the same text"
    )


class GenerateResponse(BaseModel):
    """The continuation. `seed` repeats it, also when the request named none."""

    text: str
    new_tokens: int
    seed: int
    model: str


class ScoreRequest(BaseModel):
    """Text to score."""

    model_config = ConfigDict(extra="forbid")

    text: str = Field(min_length=1, max_length=MAX_TEXT, description="at least two bytes")


class ScoreResponse(BaseModel):
    """Mean bits the model needs for a byte, over all bytes but the first."""

    bits_per_byte: float
    scored_bytes: int
    model: str


class RungInfo(BaseModel):
    """A variant that answers under overload. `agreement`: share of fp32's likeliest bytes."""

    variant: str
    agreement: float
    size_bytes: int | None
    is_loaded: bool


class TrialInfo(BaseModel):
    """A candidate beside production: its share of requests, and how many this replica compared.

    `dropped` found no idle moment.
    """

    version: str
    weight: float
    shadow: bool
    pairs: int
    dropped: int


class ModelInfo(BaseModel):
    """The model that answers. A figure its checkpoint does not hold is null.

    `uri` is the checkpoint that it comes from; `data` what a published version says of its text.
    `overload` says what happens to texts to score when there are too many; `rungs` are the variants
    for that, `rung` the place of the one that scores now.
    `follows` is the alias that the replica stays at, `problem` why it could not.
    """

    version: str
    variant: str = "fp32"
    uri: str
    run: str | None
    step: int | None
    data: dict[str, Any] | None = None
    bits_per_byte: float | None
    order0_bits_per_byte: float | None
    parameters: int
    block_size: int
    overload: str = "wait"
    rungs: list[RungInfo] = []
    rung: int = 0
    follows: str | None = None
    problem: str | None = None
    trial: TrialInfo | None = None


class Health(BaseModel):
    """The answer of a replica that is up."""

    status: str
    model: str


class Scored(NamedTuple):
    """Bits per byte, bytes scored, and headers of the answer."""

    bits_per_byte: float
    scored_bytes: int
    headers: Mapping[str, str] = {}


class Answering(Protocol):
    """What the routes need of a model, for one request."""

    @property
    def info(self) -> ModelInfo:
        """The model that answers it."""

    async def generate(self, request: GenerateRequest, seed: int) -> bytes:
        """The bytes that follow the prompt."""

    async def score(self, text: bytes) -> Scored:
        """Bits per byte and the number of bytes scored. RequestError when it is refused."""

    def figures(self) -> bytes:
        """Metrics in Prometheus' text format."""


class LanguageModelService(Protocol):
    """What the application needs of a model."""

    @property
    def info(self) -> ModelInfo:
        """The model that answers."""

    def turn(self, request_id: str = "") -> AbstractContextManager[Answering]:
        """Who answers a request, from its first byte to the last of its answer."""


# A request that works for each route, shown beside what was wrong with the given one.
_EXAMPLES: dict[str, dict[str, Any]] = {
    "/generate": {"prompt": "def main(", "max_new_tokens": 64, "temperature": 0.8, "seed": 7},
    "/score": {"text": "import os"},
}


def build_api(service: LanguageModelService) -> FastAPI:
    """The application for one loaded model."""
    api = FastAPI(
        title="rayburst language model",
        summary="A byte-level language model: continues and scores text.",
        version=service.info.version,
    )
    _add_model_routes(api)
    _add_text_routes(api)
    api.add_exception_handler(RequestValidationError, _unprocessable)
    api.add_exception_handler(RequestError, _refused)
    api.add_middleware(_Signed, service=service)
    return api


class _Signed:
    """Gives each request its turn. Every answer says which version gave it, and in which form."""

    def __init__(self, app: ASGIApp, service: LanguageModelService) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = Headers(scope=scope).get("x-request-id", "")
        with self._service.turn(request_id) as turn:

            async def signed(message: Message) -> None:
                if message["type"] == "http.response.start":
                    headers, info = MutableHeaders(scope=message), turn.info
                    headers["x-rayburst-model"] = info.version
                    headers.setdefault("x-rayburst-variant", info.variant)
                await send(message)

            scope[_TURN] = turn
            await self._app(scope, receive, signed)


def _turn(request: Request) -> Answering:
    turn: Answering = request.scope[_TURN]
    return turn


Turn = Annotated[Answering, Depends(_turn)]


def _add_model_routes(api: FastAPI) -> None:
    @api.get("/healthz")
    async def healthz(turn: Turn) -> Health:
        """Up, with the model that answers."""
        return Health(status="ok", model=turn.info.version)

    @api.get("/v1/model")
    async def model(turn: Turn) -> ModelInfo:
        """Version, training step and validation of the model that answers."""
        return turn.info

    @api.get("/metrics", response_class=Response)
    async def metrics(turn: Turn) -> Response:
        """Prometheus metrics of this replica: texts scored, by variant too."""
        return Response(turn.figures(), media_type="text/plain; version=0.0.4")


def _add_text_routes(api: FastAPI) -> None:
    @api.post("/generate")
    async def generate(request: GenerateRequest, turn: Turn) -> GenerateResponse:
        """Continues a text. Bytes that are no UTF-8 come back as U+FFFD."""
        seed = secrets.randbits(32) if request.seed is None else request.seed
        written = await turn.generate(request, seed)
        return GenerateResponse(
            text=written.decode(errors="replace"),
            new_tokens=len(written),
            seed=seed,
            model=turn.info.version,
        )

    @api.post("/score")
    async def score(request: ScoreRequest, response: Response, turn: Turn) -> ScoreResponse:
        """Bits per byte of a text, the measure the model was validated with."""
        text = request.text.encode()
        if len(text) < 2:
            short = "Text should have at least 2 bytes: the first one is not scored"
            raise RequestValidationError(
                [{"loc": ("body", "text"), "msg": short, "input": request.text}]
            )
        scored = await turn.score(text)
        response.headers.update(scored.headers)
        return ScoreResponse(
            bits_per_byte=scored.bits_per_byte,
            scored_bytes=scored.scored_bytes,
            model=turn.info.version,
        )


async def _refused(request: Request, error: Exception) -> Response:
    """503 and the like: why, and when to ask again."""
    status = error.status if isinstance(error, RequestError) else 500
    body: dict[str, Any] = {"error": str(error), "status": status}
    headers = {}
    if isinstance(error, RefusedError):
        body["retry_after_s"] = round(error.retry_after_s, 4)
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s)))
    return Response(json.dumps(body), status, headers, media_type="application/json")


async def _unprocessable(request: Request, error: Exception) -> Response:
    """422: every problem with its field, what was given, and a body that works."""
    problems = error.errors() if isinstance(error, RequestValidationError) else []
    example = next((e for path, e in _EXAMPLES.items() if request.url.path.endswith(path)), None)
    body = {
        "detail": [_problem(p) for p in problems],
        "example": example,
    }
    # ASCII escapes: what was given may hold surrogates, which UTF-8 cannot carry.
    return Response(json.dumps(body), status_code=422, media_type="application/json")


def _problem(raw: Any) -> dict[str, str]:
    where = ".".join(str(part) for part in raw["loc"] if part != "body") or "body"
    given = repr(raw.get("input"))
    return {
        "field": where,
        "problem": str(raw["msg"]),
        "given": given if len(given) <= 80 else given[:77] + "...",
    }
