"""A small HTTP proxy before an S3 server that misbehaves as told, and counts what it did."""

from __future__ import annotations

import http.client
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

Plan = Callable[[str, str, int], str | None]
BUSY = b"<Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>"

SKEWED = (
    b"<Error><Code>RequestTimeTooSkewed</Code><Message>The difference between the request time "
    b"and the current time is too large.</Message></Error>"
)


class FaultyProxy:
    """Forwards to `endpoint`. `plan(method, path, number of the request)` names a fault or None:

    "503" an answer of SlowDown; "429 N" and "503 N" the same with Retry-After: N; "503-after" one
    after the request was carried out; "reset" the connection breaks in the middle of the answer;
    "cut" before the request is sent on; "stall" nothing for `stall_s`; "slow" the answer trickles;
    "flip-down" one bit of the answer's body is wrong; "flip-up" one bit of the request's; "skew"
    the request's time is refused.

    `log`: time, method, path and fault of every request.
    """

    def __init__(self, endpoint: str, stall_s: float = 8.0) -> None:
        upstream = urlsplit(endpoint)
        self.fired: Counter[str] = Counter()
        self.requests: Counter[str] = Counter()
        self.plan: Plan = lambda method, path, number: None
        self.stall_s = stall_s
        self.log: list[tuple[float, str, str, str | None]] = []  # time, method, path, fault
        self._lock = threading.Lock()
        self._stop = threading.Event()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                body = self.body()
                fault = proxy.next_fault(self.command, self.path)
                status, _, after = (fault or "").partition(" ")
                if status in ("429", "503"):
                    told = [("Retry-After", after)] if after else []
                    self.answer(int(status), [("Content-Type", "application/xml"), *told], BUSY)
                    return
                if fault == "skew":
                    self.answer(403, [("Content-Type", "application/xml")], SKEWED)
                    return
                if fault == "cut":
                    self.reset()
                    return
                if fault == "stall":
                    proxy._stop.wait(proxy.stall_s)
                    self.reset()
                    return
                if fault == "flip-up" and body:
                    body = body[:-1] + bytes([body[-1] ^ 1])
                code, headers, data = self.forward(body)
                if fault == "503-after":
                    self.answer(503, [("Content-Type", "application/xml")], BUSY)
                    return
                if fault == "flip-down" and data:
                    data = data[:-1] + bytes([data[-1] ^ 1])
                self.answer(code, headers, data, fault)

            def body(self) -> bytes:
                if "chunked" not in self.headers.get("Transfer-Encoding", ""):
                    return self.rfile.read(int(self.headers.get("Content-Length") or 0))
                read = b""
                while size := int(self.rfile.readline().split(b";")[0], 16):
                    read += self.rfile.read(size)
                    self.rfile.readline()
                while self.rfile.readline().strip():  # trailers
                    continue
                return read

            do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = handle_any

            def forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
                link = http.client.HTTPConnection(
                    upstream.hostname or "", upstream.port, timeout=60
                )
                try:
                    link.putrequest(
                        self.command, self.path, skip_host=True, skip_accept_encoding=True
                    )
                    for name, value in self.headers.items():
                        if name.lower() != "transfer-encoding":
                            link.putheader(name, value)
                    if "Content-Length" not in self.headers and body:
                        link.putheader("Content-Length", str(len(body)))
                    link.endheaders(body or None)
                    reply = link.getresponse()
                    return reply.status, reply.getheaders(), reply.read()
                finally:
                    link.close()

            def answer(
                self,
                status: int,
                headers: list[tuple[str, str]],
                data: bytes,
                fault: str | None = None,
            ) -> None:
                self.send_response_only(status)
                for name, value in headers:
                    if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                        self.send_header(name, value)
                length = dict((n.lower(), v) for n, v in headers).get("content-length")
                if self.command == "HEAD" and length:
                    self.send_header("Content-Length", length)
                elif status != 204:
                    self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if self.command == "HEAD":
                    return
                if fault == "reset":
                    self.wfile.write(data[: len(data) // 2])
                    self.wfile.flush()
                    self.reset()
                elif fault == "slow":
                    step = max(1, len(data) // 20)
                    for start in range(0, len(data), step):
                        self.wfile.write(data[start : start + step])
                        self.wfile.flush()
                        proxy._stop.wait(0.02)
                else:
                    self.wfile.write(data)

            def reset(self) -> None:
                linger = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                self.close_connection = True
                self.connection.close()

            def handle(self) -> None:
                try:
                    super().handle()
                except (OSError, ValueError):
                    return  # the client gave up, or we broke the connection on purpose

            def finish(self) -> None:
                try:
                    super().finish()
                except (OSError, ValueError):
                    return

            def log_message(self, format: str, *args: object) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    def next_fault(self, method: str, path: str) -> str | None:
        """Count the request and ask the plan."""
        with self._lock:
            number = self.requests[method]
            self.requests[method] += 1
            fault = self.plan(method, path, number)
            self.log.append((time.monotonic(), method, path, fault))
            if fault:
                self.fired[fault] += 1
        return fault

    def close(self) -> None:
        """Stop serving."""
        self._stop.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
