"""A metadata service like that of an EC2 instance, to answer on this machine. Tokens only (IMDSv2).

imds = ImdsServer(address="127.0.0.1")
imds.start()
imds.give_notice(deadline=time.time() + 120)
imds.stop()
"""

from __future__ import annotations

import json
import socket
import sys
import threading
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from secrets import token_hex
from typing import Any

_META = "/latest/meta-data/"
_USER_DATA = "/latest/user-data"
_ACTION, _REBALANCE = "spot/instance-action", "events/recommendations/rebalance"


class ImdsServer:
    """One instance's service.

    Args:
        address: where it listens.
        at: a listening socket instead, wherever it is.

    Attributes:
        documents: what stands under `/latest/meta-data/`, by path.
        user_data: what stands at `/latest/user-data`.
    """

    def __init__(
        self, *, address: str = "", port: int = 0, at: socket.socket | None = None
    ) -> None:
        self.documents: dict[str, str] = {}
        self.user_data: str | None = None
        self.tokens: set[str] = set()
        at = at or socket.create_server((address, port))
        self._server = _Server(("", 0), _handler(self), bind_and_activate=False)
        self._server.socket.close()
        self._server.socket = at
        self._server.server_address = at.getsockname()[:2]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True)

    @property
    def url(self) -> str:
        """Where it answers."""
        host, port = self._server.server_address[:2]
        return f"http://{host!s}:{port}"

    def start(self) -> None:
        """Answer, in a thread of this process."""
        self._thread.start()

    def stop(self) -> None:
        """Answer no more."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def give_notice(self, *, deadline: float, action: str = "terminate") -> None:
        """Tell the instance that it is taken at `deadline` (unix seconds)."""
        self.documents[_ACTION] = json.dumps({"action": action, "time": _iso(deadline)})

    def recommend_rebalance(self, *, at: float) -> None:
        """Tell the instance that it may be taken soon."""
        self.documents[_REBALANCE] = json.dumps({"noticeTime": _iso(at)})


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hung up is no error of ours; all else is told as ever."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _handler(imds: ImdsServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            asked = self.headers.get("X-aws-ec2-metadata-token-ttl-seconds")
            if self.path != "/latest/api/token" or not asked:
                return self._send(400, "")
            token = token_hex(16)
            imds.tokens.add(token)
            return self._send(200, token)

        def do_GET(self) -> None:
            if self.headers.get("X-aws-ec2-metadata-token") not in imds.tokens:
                return self._send(401, "")
            document = imds.documents.get(self.path.removeprefix(_META))
            if self.path == _USER_DATA:
                document = imds.user_data
            return self._send(404, "") if document is None else self._send(200, document)

        def _send(self, status: int, text: str) -> None:
            body = text.encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    return Handler
