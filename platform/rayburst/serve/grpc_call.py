"""A request that Serve's gRPC proxy brought: the same endpoint, other words for the outcome."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import grpc
import msgspec

from rayburst.serve.batcher import Ticket
from rayburst.serve.codec import JSON
from rayburst.serve.endpoint import Endpoint
from rayburst.serve.model_pb2 import PredictReply, PredictRequest
from rayburst.serve.rungs import Headers as Told

__all__ = ["predict"]

_CODES = {
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}


class _GrpcCall:
    """endpoint.Call; the endpoint may answer it from another loop."""

    def __init__(self, headers: Mapping[bytes, bytes]) -> None:
        self.headers = headers
        self.ticket: Ticket | None = None
        self.told: Told = ()
        self._loop = asyncio.get_running_loop()
        self.answer: asyncio.Future[tuple[int, bytes, str, float | None]] = (
            self._loop.create_future()
        )

    def respond(self, status: int, body: bytes, kind: str, retry_after_s: float | None) -> None:
        self._loop.call_soon_threadsafe(self._settle, (status, body, kind, retry_after_s))

    def _settle(self, answer: tuple[int, bytes, str, float | None]) -> None:
        if not self.answer.done():
            self.answer.set_result(answer)


async def predict(endpoint: Endpoint, request: PredictRequest, context: Any) -> PredictReply:
    """Answers one input; an outcome other than an answer is a status code of `context`."""
    call = _GrpcCall(_headers(request, context.invocation_metadata()))
    body = request.body
    most = endpoint.options.max_body_bytes
    if len(body) > most:
        return _fail(context, 422, f"the body has {len(body)} bytes; max_body_bytes is {most}")
    endpoint.on_home(lambda: endpoint.take(call, body))
    try:
        status, answer, kind, retry_after_s = await call.answer
    except asyncio.CancelledError:  # the client went
        endpoint.on_home(lambda: endpoint.cancel(call.ticket) if call.ticket else None)
        raise
    if status == 200:
        if call.told:
            told = [(name.decode(), value.decode("latin-1")) for name, value in call.told]
            context.set_trailing_metadata(told)
        return PredictReply(body=answer, content_type=kind)
    if retry_after_s is not None:
        context.set_trailing_metadata([("retry-after-s", f"{retry_after_s:.4f}")])
    return _fail(context, status, msgspec.json.decode(answer)["error"])


def _fail(context: Any, status: int, why: str) -> PredictReply:
    other = grpc.StatusCode.INTERNAL if status >= 500 else grpc.StatusCode.INVALID_ARGUMENT
    context.set_code(_CODES.get(status, other))
    context.set_details(why)
    return PredictReply()


def _headers(request: PredictRequest, metadata: Any) -> dict[bytes, bytes]:
    """As HTTP would have sent them; Serve gives metadata as pairs."""
    headers = {
        key.lower().encode("latin-1"): value.encode("latin-1") if isinstance(value, str) else value
        for key, value in metadata
    }
    kind = request.content_type or JSON
    headers[b"content-type"] = kind.encode("latin-1", "replace")
    headers[b"accept"] = (request.accept or kind).encode("latin-1", "replace")
    return headers
