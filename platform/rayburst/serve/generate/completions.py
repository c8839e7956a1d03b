"""The OpenAI-compatible interface: /v1/completions and /v1/models, streaming too.

    routes = completion_routes(service, endpoint, names=("demo@400",))

What a client may send is `CompletionRequest`: OpenAI's fields, and `top_k`. A field that would
change the text and is not supported must have the value that changes nothing; others are refused
by name. Tokens are bytes. Errors have OpenAI's shape. Who may ask is decided by the endpoint, as
for its other routes; callers with different keys share no cached blocks.
"""

from __future__ import annotations

import asyncio
import codecs
import json
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Sequence
from contextlib import aclosing
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from rayburst.errors import BadRequestError, RefusedError, RequestError
from rayburst.serve.endpoint import TENANT, Endpoint
from rayburst.serve.generate.request import Request as Ask
from rayburst.serve.generate.service import GenerationService, Written
from rayburst.serve.headers import Headers

__all__ = ["CompletionRequest", "completion", "completion_routes", "deltas"]

MAX_TEXT = 65_536
MAX_TOKENS = 1_024
MAX_CHOICES = 16
_SECRETS = (b"authorization", b"x-api-key", TENANT)
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}

Result = TypeVar("Result")
Text = Annotated[str, Field(min_length=1, max_length=MAX_TEXT)]
Tokens = Annotated[list[Annotated[int, Field(ge=0, le=255)]], Field(min_length=1)]
Stop = Annotated[str, Field(min_length=1, max_length=256)]


class StreamOptions(BaseModel):
    """What a stream tells besides its text."""

    model_config = ConfigDict(extra="forbid")

    include_usage: bool = False


class CompletionRequest(BaseModel):
    """The body of POST /v1/completions."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    model: str | None = Field(default=None, description="as GET /v1/models names it")
    prompt: Text | Tokens | Annotated[list[Text], Field(min_length=1, max_length=MAX_CHOICES)]
    max_tokens: int = Field(default=16, ge=1, le=MAX_TOKENS, description="a token is a byte")
    temperature: float = Field(default=1.0, ge=0.0, le=5.0)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    top_k: int | None = Field(default=None, ge=1, le=256)
    n: int = Field(default=1, ge=1, le=MAX_CHOICES, description="texts for each prompt")
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = None
    seed: int | None = Field(default=None, ge=0, lt=2**62)
    echo: bool = Field(default=False, description="begin with the prompt")
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = None
    # OpenAI's other fields: only with the value that changes nothing
    best_of: Literal[1] | None = None
    logprobs: None = None
    suffix: None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None
    frequency_penalty: float = Field(default=0.0, ge=0.0, le=0.0)
    presence_penalty: float = Field(default=0.0, ge=0.0, le=0.0)

    def prompts(self) -> list[bytes]:
        """The prompts as bytes."""
        if isinstance(self.prompt, str):
            return [self.prompt.encode()]
        if isinstance(self.prompt[0], int):
            return [bytes(token for token in self.prompt if isinstance(token, int))]
        return [text.encode() for text in self.prompt if isinstance(text, str)]

    def asks(self, salt: bytes) -> list[Ask]:
        """A request for each choice, in order; BadRequestError when there are too many."""
        prompts = self.prompts()
        if len(prompts) * self.n > MAX_CHOICES:
            raise BadRequestError(
                f"{len(prompts)} prompts with n={self.n} are {len(prompts) * self.n} texts: ask "
                f"for at most {MAX_CHOICES} at a time"
            )
        seed = secrets.randbits(32) if self.seed is None else self.seed
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [
            Ask(
                prompt=prompt,
                max_tokens=self.max_tokens,
                temperature=self.temperature,
                top_k=self.top_k,
                top_p=self.top_p,
                seed=seed + place,
                stop=tuple(text.encode() for text in stop),
                salt=salt,
            )
            for prompt in prompts
            for place in range(self.n)
        ]


async def completion(
    service: GenerationService, asked: CompletionRequest, *, model: str, salt: bytes
) -> dict[str, Any]:
    """The whole answer. When one text fails, or the caller leaves, all of them end."""
    asks = asked.asks(salt)
    tasks = [asyncio.ensure_future(service.write(ask)) for ask in asks]
    try:
        texts = await asyncio.gather(*tasks)
    finally:
        await _ended(tasks)
    choices = []
    for place, (ask, text) in enumerate(zip(asks, texts, strict=True)):
        shown = (ask.prompt if asked.echo else b"") + text.data
        choices.append(_choice(place, shown.decode(errors="replace"), text.reason))
    return {
        **_head(model),
        "choices": choices,
        "usage": _usage(asked, sum(t.tokens for t in texts)),
    }


async def deltas(
    service: GenerationService, asked: CompletionRequest, *, model: str, salt: bytes
) -> AsyncGenerator[dict[str, Any], None]:
    """The answer piece by piece. Closing it ends all its texts."""
    asks, head = asked.asks(salt), _head(model)
    queue: asyncio.Queue[tuple[int, Written | BaseException]] = asyncio.Queue()
    tasks = [
        asyncio.ensure_future(_pump(service, ask, place, queue)) for place, ask in enumerate(asks)
    ]
    decoders = [codecs.getincrementaldecoder("utf-8")("replace") for _ in asks]
    going, tokens = len(asks), 0
    is_begun = [not asked.echo] * len(asks)
    try:
        while going:
            place, piece = await queue.get()
            if isinstance(piece, BaseException):
                raise piece
            before = b"" if is_begun[place] else asks[place].prompt
            is_begun[place] = True
            tokens += piece.tokens
            going -= piece.reason is not None
            # half a character waits for its other half
            text = decoders[place].decode(before + piece.data, final=piece.reason is not None)
            if text or piece.reason is not None:
                yield {**head, "choices": [_choice(place, text, piece.reason)]}
        if asked.stream_options is not None and asked.stream_options.include_usage:
            yield {**head, "choices": [], "usage": _usage(asked, tokens)}
    finally:
        await _ended(tasks)


def completion_routes(
    service: GenerationService, endpoint: Endpoint, *, names: Sequence[str]
) -> list[Route]:
    """The routes of a model that is known by `names`; the first is what answers say."""

    since = int(time.time())

    async def completions(request: Request) -> Response:
        """Continues prompts."""
        began_s = time.monotonic()
        try:
            response = await _completions(service, endpoint, request, names)
        except ClientDisconnect:
            response = _error(499, "the client went")
        except asyncio.CancelledError:
            endpoint.metrics.answered(499, 0.0)
            raise
        except RequestError as error:
            retry_s = error.retry_after_s if isinstance(error, RefusedError) else None
            response = _error(error.status, str(error), retry_s)
        endpoint.metrics.answered(response.status_code, time.monotonic() - began_s)
        return response

    async def models(request: Request) -> Response:
        """The models that can be named."""
        same = {"object": "model", "created": since, "owned_by": "rayburst"}
        return JSONResponse({"object": "list", "data": [{"id": n, **same} for n in names]})

    return [
        Route("/v1/completions", completions, methods=["POST"]),
        Route("/v1/models", models, methods=["GET"]),
    ]


async def _completions(
    service: GenerationService, endpoint: Endpoint, request: Request, names: Sequence[str]
) -> Response:
    headers = dict(request.scope["headers"])
    asked: CompletionRequest = await endpoint.admit_stream(headers, await _body(request, endpoint))
    if asked.model is not None and asked.model not in names:
        known = ", ".join(names)
        return _error(404, f"no model {asked.model[:80]!r} here; there is: {known}")
    salt = _salt(headers)
    if not asked.stream:
        made = completion(service, asked, model=names[0], salt=salt)
        return JSONResponse(await _unless_gone(request, made))
    pieces = deltas(service, asked, model=names[0], salt=salt)
    try:
        # what is refused is refused before the status is sent
        first = await _unless_gone(request, anext(pieces))
    except BaseException:
        await pieces.aclose()
        raise
    return StreamingResponse(_events(first, pieces), media_type="text/event-stream")


async def _events(
    first: dict[str, Any], pieces: AsyncGenerator[dict[str, Any], None]
) -> AsyncGenerator[bytes, None]:
    async with aclosing(pieces):
        yield _data(first)
        try:
            async for piece in pieces:
                yield _data(piece)
        except RequestError as error:  # the status is sent already
            yield _data(_told(error.status, str(error)))
        else:
            yield b"data: [DONE]\n\n"


async def _pump(
    service: GenerationService,
    ask: Ask,
    place: int,
    queue: asyncio.Queue[tuple[int, Written | BaseException]],
) -> None:
    try:
        async with aclosing(service.stream(ask)) as pieces:
            async for piece in pieces:
                queue.put_nowait((place, piece))
    except RequestError as error:
        queue.put_nowait((place, error))


async def _unless_gone(request: Request, work: Awaitable[Result]) -> Result:
    """What `work` gives; ends it and raises ClientDisconnect when the client goes before."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnect
    finally:
        await _ended((task, gone))


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _ended(tasks: Sequence[asyncio.Future[Any]]) -> None:
    """Ends tasks, and waits until they have."""
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled():
            task.exception()  # told elsewhere, or of no interest any more


async def _body(request: Request, endpoint: Endpoint) -> bytes:
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > endpoint.options.max_body_bytes:
            raise RefusedError(
                "the body is larger than max_body_bytes", status=413, retry_after_s=0.0
            )
        parts.append(part)
    return b"".join(parts)


def _salt(headers: Headers) -> bytes:
    """What tells callers apart: their key, or the name they give."""
    return b"\n".join(headers.get(name, b"") for name in _SECRETS)


def _head(model: str) -> dict[str, Any]:
    return {
        "id": f"cmpl-{secrets.token_hex(12)}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": model,
    }


def _choice(place: int, text: str, reason: str | None) -> dict[str, Any]:
    return {"index": place, "text": text, "logprobs": None, "finish_reason": reason}


def _usage(asked: CompletionRequest, written: int) -> dict[str, int]:
    read = sum(map(len, asked.prompts()))
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def _data(value: dict[str, Any]) -> bytes:
    return b"data: %b\n\n" % json.dumps(value).encode()


def _told(status: int, why: str) -> dict[str, Any]:
    kind = "server_error" if status >= 500 else _TYPES.get(status, "invalid_request_error")
    return {"error": {"message": why, "type": kind, "param": None, "code": status}}


def _error(status: int, why: str, retry_after_s: float | None = None) -> Response:
    status = 400 if status == 422 else status  # as OpenAI has it
    headers = {"retry-after": str(max(1, round(retry_after_s)))} if retry_after_s else None
    return JSONResponse(_told(status, why), status, headers)
