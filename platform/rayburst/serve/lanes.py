"""The fast lane: a replica's own HTTP server answers predictions without a task for each.

Serve gives a replica behind its HAProxy (RAY_SERVE_ENABLE_HA_PROXY=1) a port and a uvicorn server
of its own. The lane keeps that server and teaches its protocol one thing: a POST to a path of the
endpoint goes from the parser to the queue, and its response from the queue to the socket. No ASGI
scope, no tasks, no context variables. Every other request (health, streams, handles, other
methods) goes Serve's stock way, on the same connection if need be; so do requests that ask for
what the lane has not (a query, an upgrade).

What the stock way gave and the lane gives back: caps (admission.py), time-outs, cancellation when
the client goes, request ids, Serve's and Prometheus' metrics, the access log, multiplexing.
With tracing on in Serve, the lane stands aside: spans are made on the stock way.

A connection is bounded in every direction: `READ_S` for a request to arrive whole, the size of
a body, the bytes of all bodies together, and nothing is read from a client that does not read.
"""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections.abc import Callable, Mapping
from itertools import count
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from rayburst.serve.batcher import Ticket
from rayburst.serve.endpoint import Endpoint
from rayburst.serve.rungs import Headers as Told

__all__ = ["READ_S", "FastCall", "FastProtocol", "Lane", "protocol_for"]

READ_S = 20.0
MAX_BUFFERED = 256 << 20
MAX_HEADERS = 100
MAX_ID_BYTES = 128
LINGER_S = 2.0
MAX_HEADER_BYTES = 64 << 10
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_ids = count()
_ID_PREFIX = secrets.token_hex(8)

Seen = Callable[[int, float, str], None]


class Lane:
    """What the connections of one replica share. `seen(status, seconds, request id)` is told of
    every response, `ongoing(+1 | -1)` of every request that starts or ends."""

    def __init__(
        self,
        endpoint: Endpoint,
        paths: frozenset[bytes],
        *,
        timeout_s: float | None = None,
        ongoing: Callable[[int], None] = lambda change: None,
        seen: Seen = lambda status, seconds, request_id: None,
    ) -> None:
        self.endpoint, self.paths, self.timeout_s = endpoint, paths, timeout_s
        self.ongoing, self.seen = ongoing, seen
        self.buffered = 0
        self.reading: dict[FastProtocol, float] = {}  # oldest first
        self.running: dict[FastCall, float] = {}  # oldest first
        self._head_of: tuple[Any, bytes] = (None, b"")

    async def watch(self, every_s: float = 0.5) -> None:
        """Ends requests that take too long to arrive or to be answered, for ever."""
        while True:
            await asyncio.sleep(every_s)
            self.sweep(time.monotonic())

    def sweep(self, now_s: float) -> None:
        """One round of `watch`."""
        for protocol, since_s in list(self.reading.items()):
            if now_s - since_s < READ_S:
                break
            self.reading.pop(protocol)
            protocol.give_up()
        for call, since_s in list(self.running.items()):
            if self.timeout_s is None or now_s - since_s < self.timeout_s:
                break
            call.time_out()

    def default_head(self, headers: list[tuple[bytes, bytes]]) -> bytes:
        """Uvicorn's default headers (it makes a new list each second) as bytes."""
        if self._head_of[0] is not headers:
            joined = b"".join(b"%b: %b\r\n" % pair for pair in headers)
            self._head_of = (headers, joined)
        return self._head_of[1]


class FastCall:
    """One request on the lane. To uvicorn's protocol it looks like its own request cycle."""

    __slots__ = (
        "began_s",
        "body",
        "disconnected",
        "headers",
        "is_started",
        "keep_alive",
        "message_event",
        "more_body",
        "protocol",
        "request_id",
        "response_complete",
        "size",
        "ticket",
        "told",
    )

    headers: Mapping[bytes, bytes]
    ticket: Ticket | None

    def __init__(self, protocol: FastProtocol, headers: Mapping[bytes, bytes]) -> None:
        self.protocol = protocol
        self.headers = headers
        self.body: list[bytes] = []
        self.size = 0
        self.began_s = 0.0
        self.ticket = None
        self.told: Told = ()
        self.request_id = headers.get(b"x-request-id", b"")[:MAX_ID_BYTES] or _new_id()
        self.keep_alive = True
        self.is_started = self.response_complete = self.disconnected = False
        self.more_body = True
        self.message_event = _NO_EVENT

    async def run_asgi(self, app: Any) -> None:
        """Called by uvicorn for a request that waited behind another on its connection."""
        self.protocol.lane_turn(self)

    def start(self) -> None:
        """The body is here and it is this request's turn on its connection."""
        lane = self.protocol.lane
        self.is_started = True
        self.began_s = time.monotonic()
        lane.running[self] = self.began_s
        lane.ongoing(1)
        body = self.body[0] if len(self.body) == 1 else b"".join(self.body)
        self.body = []
        lane.endpoint.take(self, body)

    def respond(self, status: int, body: bytes, kind: str, retry_after_s: float | None) -> None:
        """Writes the response; endpoint.Call."""
        if self.response_complete:
            return
        self._end(status)
        protocol = self.protocol
        if self.disconnected or protocol.transport.is_closing():
            return
        parts = [
            STATUS_LINE[status],
            protocol.lane.default_head(protocol.server_state.default_headers),
            b"content-type: %b\r\ncontent-length: %d\r\nx-request-id: %b\r\n"
            % (kind.encode(), len(body), self.request_id),
        ]
        parts += [b"%b: %b\r\n" % pair for pair in self.told]
        if retry_after_s is not None:
            parts.append(b"retry-after: %d\r\n" % max(1, math.ceil(retry_after_s)))
        if not self.keep_alive:
            parts.append(b"connection: close\r\n")
        parts += (b"\r\n", body)
        protocol.transport.write(b"".join(parts))
        if self.more_body:
            protocol.linger()
        elif not self.keep_alive:
            protocol.transport.close()
        protocol.on_response_complete()

    def refuse_unread(self, status: int, why: bytes) -> None:
        """Answers before the body is here; the rest of it is read and dropped for a moment.

        To close at once would make the kernel reset the connection, and the client might see
        the reset instead of the answer.
        """
        self.keep_alive = False
        self.respond(
            status, b'{"error":"%b","status":%d}' % (why, status), "application/json", None
        )

    def time_out(self) -> None:
        """Serve's request_timeout_s has passed."""
        if self.ticket is not None:
            self.protocol.lane.endpoint.cancel(self.ticket)
        body = b'{"error":"not answered within request_timeout_s","status":504}'
        self.respond(504, body, "application/json", 1.0)

    def leave(self) -> None:
        """The client is gone."""
        self.disconnected = True
        if self.ticket is not None and not self.response_complete:
            self.protocol.lane.endpoint.cancel(self.ticket)
        if not self.response_complete:
            self._end(499)

    def _end(self, status: int) -> None:
        self.response_complete = True
        lane = self.protocol.lane
        lane.buffered -= self.size
        self.size = 0
        if self.is_started:
            lane.running.pop(self, None)
            lane.ongoing(-1)
            took_s = time.monotonic() - self.began_s
            lane.seen(status, took_s, self.request_id.decode("latin-1"))


class FastProtocol(HttpToolsProtocol):
    """Uvicorn's HTTP/1.1 protocol with the lane built in. `protocol_for` makes it a class."""

    lane: Lane

    _bytes = 0
    _active: FastCall | None = None
    _is_lingering = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.lane.reading[self] = time.monotonic()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lane.reading.pop(self, None)
        for call in {self._active, self.cycle, *(waiting for waiting, _ in self.pipeline)}:
            if isinstance(call, FastCall):
                call.leave()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        self.url = b""
        self.expect_100_continue = False
        self.headers = []
        self._bytes = 0
        if self not in self.lane.reading:
            self.lane.reading[self] = time.monotonic()

    def on_url(self, url: bytes) -> None:
        self.url += url
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))
        self._count(len(name) + len(value))

    def on_headers_complete(self) -> None:
        if self.transport.is_closing() or self._is_lingering:
            return
        if self.url in self.lane.paths and self.parser.get_method() == b"POST":
            headers = dict(self.headers)
            if b"upgrade" not in headers:
                self._begin(headers)
                return
        told, url = self.headers, self.url
        super().on_message_begin()  # makes the scope that the stock way needs
        self.url = url
        self.headers.extend(told)
        self.expect_100_continue = (b"expect", b"100-continue") in told
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        call: Any = self.cycle
        if type(call) is not FastCall:
            if call is not None and not self.transport.is_closing():
                super().on_body(body)
            return
        if call.response_complete:
            return
        lane = self.lane
        call.body.append(body)
        call.size += len(body)
        lane.buffered += len(body)
        if call.size > lane.endpoint.options.max_body_bytes:
            call.refuse_unread(413, b"the body is larger than max_body_bytes")
        elif lane.buffered > MAX_BUFFERED:
            call.refuse_unread(503, b"too many bytes are on their way here")

    def on_message_complete(self) -> None:
        self.lane.reading.pop(self, None)
        call: Any = self.cycle
        if type(call) is not FastCall:
            if call is not None:
                super().on_message_complete()
            return
        call.more_body = False
        if self._is_lingering:
            self.transport.close()
        elif call is self._active and not call.response_complete:
            call.start()

    def lane_turn(self, call: FastCall) -> None:
        """It is the turn of a request that waited behind another."""
        self._active = call
        if not call.more_body and not call.response_complete:
            call.start()

    def pause_writing(self) -> None:
        super().pause_writing()
        self.flow.pause_reading()  # who does not read is not read from

    def resume_writing(self) -> None:
        super().resume_writing()
        self.flow.resume_reading()

    def on_response_complete(self) -> None:
        self._active = None
        super().on_response_complete()
        if self.flow.write_paused and not self.transport.is_closing():
            self.flow.pause_reading()

    def linger(self) -> None:
        """The last response is sent: drops what still comes, for a moment, then closes."""
        self._is_lingering = True
        self.loop.call_later(LINGER_S, self.transport.close)

    def give_up(self) -> None:
        """A request did not arrive in time."""
        if self.transport.is_closing():
            return
        if self.headers is not None and not self._is_lingering:
            self.transport.write(b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\n\r\n")
        self.transport.close()

    def _begin(self, headers: dict[bytes, bytes]) -> None:
        call = FastCall(self, headers)
        version = self.parser.get_http_version()
        call.keep_alive = version != "1.0" and self.parser.should_keep_alive()
        existing: Any = self.cycle
        self.cycle = call  # type: ignore[assignment]
        if existing is None or existing.response_complete:
            self._active = call
        else:  # pipelined: its turn comes when the others are answered
            self.flow.pause_reading()
            self.pipeline.appendleft((call, self.app))  # type: ignore[arg-type]
            return
        length = headers.get(b"content-length", b"")
        if length.isdigit() and int(length) > self.lane.endpoint.options.max_body_bytes:
            call.refuse_unread(413, b"the body is larger than max_body_bytes")
        elif headers.get(b"expect", b"").lower() == b"100-continue":
            self.transport.write(_CONTINUE)

    def _count(self, size: int) -> None:
        """Bounds what a request may say before its body."""
        self._bytes += size
        too_many = self._bytes > MAX_HEADER_BYTES or len(self.headers) > MAX_HEADERS
        if too_many and not self.transport.is_closing():
            self.transport.write(STATUS_LINE[431] + b"connection: close\r\n\r\n")
            self.transport.close()


def protocol_for(lane: Lane) -> type[FastProtocol]:
    """A protocol class bound to one replica's lane, for uvicorn.Config(http=...)."""
    return type("LaneProtocol", (FastProtocol,), {"lane": lane})


class _NoEvent:
    """Uvicorn wakes a cycle's task through its event; the lane has no task to wake."""

    def set(self) -> None:
        """Nothing waits."""


_NO_EVENT: Any = _NoEvent()


def _new_id() -> bytes:
    """Unique without the system's random source, which costs more than the rest of the head."""
    return b"%b-%x" % (_ID_PREFIX.encode(), next(_ids))
