"""A served model as an ASGI application: what Serve's stock paths carry, and all that is rare.

    app = build_app(endpoint, example)

POST /predict here does what the fast lane does, at the price of the path that leads here; its
answers say so (`x-rayburst-lane: stock`). The rest is here alone: POST /stream (server-sent
events), GET /healthz, /metrics, /openapi.json, /docs, and what the model's own
`routes(endpoint)` brings.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import math
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import msgspec
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.applications import Starlette
from starlette.concurrency import iterate_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from rayburst.errors import RefusedError, RequestError
from rayburst.serve.batcher import Ticket
from rayburst.serve.codec import JSON
from rayburst.serve.endpoint import Endpoint
from rayburst.serve.openapi import describe
from rayburst.serve.rungs import Headers as Told

__all__ = ["build_app", "read_body"]

_SLOW = {"x-rayburst-lane": "stock"}


class _AsgiCall:
    """A request on the stock way; the endpoint may answer it from another loop."""

    ticket: Ticket | None

    def __init__(self, request: Request) -> None:
        self.headers: Mapping[bytes, bytes] = dict(request.scope["headers"])
        self.ticket = None
        self.told: Told = ()
        self._loop = asyncio.get_running_loop()
        self.response: asyncio.Future[Response] = self._loop.create_future()

    def respond(self, status: int, body: bytes, kind: str, retry_after_s: float | None) -> None:
        headers = _headers(retry_after_s) | {k.decode(): v.decode("latin-1") for k, v in self.told}
        made = Response(body, status, headers, media_type=kind)
        self._loop.call_soon_threadsafe(self._settle, made)

    def _settle(self, response: Response) -> None:
        if not self.response.done():
            self.response.set_result(response)


def build_app(endpoint: Endpoint, *, example: Any = None) -> Starlette:
    """The application of one replica."""

    async def predict(request: Request) -> Response:
        """Answers one input."""
        return await _predict(endpoint, request)

    async def stream(request: Request) -> Response:
        """Answers one input piece by piece."""
        return await _stream(endpoint, request)

    async def healthz(request: Request) -> Response:
        """Up, and how long a request would take now."""
        forecast_ms = round(1000 * endpoint.forecast_s(), 3)
        return JSONResponse({"status": "ok", "model": endpoint.name, "forecast_ms": forecast_ms})

    async def metrics(request: Request) -> Response:
        """This replica's figures; Ray's own metrics have those of all."""
        return Response(endpoint.metrics.render(), media_type="text/plain; version=0.0.4")

    async def openapi(request: Request) -> Response:
        """What can be asked."""
        root = request.scope.get("root_path", "")
        return JSONResponse(describe(endpoint, example=example, root_path=root))

    async def docs(request: Request) -> Response:
        """The same, for people."""
        return get_swagger_ui_html(openapi_url="openapi.json", title=endpoint.name)

    routes: list[tuple[str, Callable[..., Any], str]] = [
        ("/predict", predict, "POST"),
        ("/healthz", healthz, "GET"),
        ("/metrics", metrics, "GET"),
        ("/openapi.json", openapi, "GET"),
        ("/docs", docs, "GET"),
    ]
    if hasattr(endpoint.model, "stream"):
        routes.append(("/stream", stream, "POST"))
    more: list[Route] = []
    if hasattr(endpoint.model, "routes"):
        more = endpoint.model.routes(endpoint)
    own = [Route(path, call, methods=[method]) for path, call, method in routes]
    return Starlette(routes=[*own, *more])


async def _predict(endpoint: Endpoint, request: Request) -> Response:
    body = await read_body(request, endpoint.options.max_body_bytes)
    if isinstance(body, Response):
        return body
    call = _AsgiCall(request)
    endpoint.on_home(lambda: endpoint.take(call, body))
    try:
        return await call.response
    except asyncio.CancelledError:  # the client went, or Serve's time-out passed
        endpoint.on_home(lambda: endpoint.cancel(call.ticket) if call.ticket else None)
        raise


async def _stream(endpoint: Endpoint, request: Request) -> Response:
    body = await read_body(request, endpoint.options.max_body_bytes)
    if isinstance(body, Response):
        return body
    headers = dict(request.scope["headers"])
    try:
        value = await endpoint.admit_stream(headers, body)
    except RequestError as error:
        retry_s = error.retry_after_s if isinstance(error, RefusedError) else None
        return _error(error.status, str(error), retry_s)
    pieces = endpoint.model.stream(value)
    if not inspect.isasyncgen(pieces):
        pieces = iterate_in_threadpool(iter(pieces))
    return StreamingResponse(_events(pieces), media_type="text/event-stream")


async def _events(pieces: AsyncIterator[Any]) -> AsyncIterator[bytes]:
    """One `data:` line for each piece; an error ends the stream with an `error` event."""
    try:
        async for piece in pieces:
            yield b"data: %b\n\n" % msgspec.json.encode(piece)
    except Exception as error:  # noqa: BLE001  the status is sent already
        told = str(error) if isinstance(error, RequestError) else "the model failed"
        yield b"event: error\ndata: %b\n\n" % json.dumps({"error": told}).encode()
    else:
        yield b"event: end\ndata: {}\n\n"


async def read_body(request: Request, most: int) -> bytes | Response:
    """The body, or the response that says why it cannot be had."""
    parts, size = [], 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > most:
                return _error(413, "the body is larger than max_body_bytes")
            parts.append(part)
    except ClientDisconnect:
        return _error(400, "the client went before its body was here")
    return b"".join(parts)


def _error(status: int, why: str, retry_after_s: float | None = None) -> Response:
    body = msgspec.json.encode({"error": why, "status": status})
    return Response(body, status, _headers(retry_after_s), media_type=JSON)


def _headers(retry_after_s: float | None) -> dict[str, str]:
    if retry_after_s is None:
        return _SLOW
    return {**_SLOW, "retry-after": str(max(1, math.ceil(retry_after_s)))}
