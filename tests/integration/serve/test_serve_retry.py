"""Serve's HAProxy and the policy of idempotent models, before servers that die with a request.

The configuration is Serve's own, written by its own code; only the replicas are plain sockets, so
that they can die at a chosen byte. test_serve_nodes.py has the whole, on nodes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import requests
from ray.serve._private.haproxy import (
    BackendConfig,
    HAProxyConfig,
    ServerConfig,
    get_haproxy_binary,
)
from ray.serve.config import HTTPOptions
from support import wait_for

from rayburst.fleet import processes
from rayburst.serve.retry._ray_hooks import RetryingApi
from rayburst.serve.retry.haproxy import ARRIVED

pytestmark = pytest.mark.timeout(60)
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
HEALTH = b"GET /-/healthz"
APPS = ("sure", "once")  # the first is idempotent


@dataclass
class Replica:
    """Answers health checks, and requests with `answer`; anything but ANSWER is its last word."""

    answer: bytes
    asked: list[bytes] = field(default_factory=list)

    def __enter__(self) -> Replica:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *why: object) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(ConnectionResetError):
            while request := self._read(connection):
                if request.startswith(HEALTH):
                    connection.sendall(ANSWER)
                    continue
                self.asked.append(request)
                connection.sendall(self.answer)
                if self.answer != ANSWER:
                    return

    def _read(self, connection: socket.socket) -> bytes:
        data = b""
        while b"\r\n\r\n" not in data:
            more = connection.recv(65536)
            if not more:
                return b""
            data += more
        head, _, body = data.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0] or 0)
        while len(body) < length:
            body += connection.recv(65536)
        return head + b"\r\n\r\n" + body


@dataclass
class Proxy:
    """A running HAProxy before two applications, each with a replica that dies with a request and
    one that does not."""

    url: str
    dying: dict[str, Replica]
    living: dict[str, Replica]
    api: Any

    def post(self, app: str, body: bytes = b"[1]") -> requests.Response:
        return requests.post(f"{self.url}/{app}/predict", data=body, timeout=30)


@pytest.fixture
def proxy(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Proxy]:
    """The parameter is what a dying replica still says."""
    port, stats, metrics = processes.free_ports(3)
    config = HAProxyConfig(
        socket_path=str(tmp_path / "s"), server_state_base=str(tmp_path),
        server_state_file=str(tmp_path / "state"), stats_port=stats, metrics_port=metrics,
        metrics_enabled=False, http_options=HTTPOptions(host="127.0.0.1", port=port),
    )  # fmt: skip
    (tmp_path / "state").touch()
    with ExitStack() as stack:
        dying = {app: stack.enter_context(Replica(request.param)) for app in APPS}
        living = {app: stack.enter_context(Replica(ANSWER)) for app in APPS}
        backends = {
            f"http-{app}": BackendConfig(
                name=f"http-{app}", path_prefix=f"/{app}", app_name=app,
                servers=[
                    ServerConfig(name="a", host="127.0.0.1", port=dying[app].port),
                    ServerConfig(name="b", host="127.0.0.1", port=living[app].port),
                ],
            )
            for app in APPS
        }  # fmt: skip
        path = tmp_path / "haproxy.cfg"
        api = RetryingApi(cfg=config, config_file_path=str(path), backend_configs=backends)
        api.node, api.retried = "node", frozenset({"http-sure"})
        api._generate_config_file_internal()
        command = [get_haproxy_binary(), "-db", "-f", str(path)]
        running = processes.spawn(command, env=dict(os.environ), log=tmp_path / "log")
        stack.callback(running.wait)
        stack.callback(running.kill)
        up = lambda: asyncio.run(api._get_running_pid())  # noqa: E731
        wait_for(up, what="HAProxy is up")
        yield Proxy(f"http://127.0.0.1:{port}", dying, living, api)


def ask_until_one_dies(proxy: Proxy, app: str, body: bytes = b"[1]") -> list[int]:
    """The statuses of requests up to the first that met the dying replica."""
    statuses: list[int] = []
    while not proxy.dying[app].asked:
        assert len(statuses) < 10, "no request met the dying replica"
        statuses.append(proxy.post(app, body).status_code)
    return statuses


@pytest.mark.parametrize("proxy", [b""], indirect=True)
def test_a_request_whose_replica_dies_is_asked_again_where_the_model_is_idempotent(
    proxy: Proxy,
) -> None:
    statuses = ask_until_one_dies(proxy, "sure")
    assert set(statuses) == {200}
    (first,) = proxy.dying["sure"].asked
    again = proxy.living["sure"].asked[-1]
    assert first == again, "the same request, and its first arrival"
    stamp = f"{ARRIVED}: node/".encode()
    assert first.count(stamp) == 1
    assert len(proxy.living["sure"].asked) == len(statuses), "each was answered once"
    asyncio.run(proxy.api.count())
    asyncio.run(proxy.api.count())  # counts nothing twice
    assert proxy.api.counts == {"sure": 1}


@pytest.mark.parametrize("proxy", [b""], indirect=True)
def test_what_is_not_declared_or_does_not_fit_the_buffer_is_asked_once(proxy: Proxy) -> None:
    *before, last = ask_until_one_dies(proxy, "once")
    assert (set(before) <= {200}, last) == (True, 500)
    assert len(proxy.living["once"].asked) == len(before)
    assert ARRIVED.encode() not in proxy.dying["once"].asked[0]
    *before, last = ask_until_one_dies(proxy, "sure", body=b"1" * 20_000)
    assert (set(before) <= {200}, last) == (True, 500)
    assert len(proxy.living["sure"].asked) == len(before)
    asyncio.run(proxy.api.count())
    assert not any(proxy.api.counts.values())


@pytest.mark.parametrize("proxy", [ANSWER[:30]], indirect=True)
def test_an_answer_that_had_begun_is_not_asked_for_again(proxy: Proxy) -> None:
    *_, last = ask_until_one_dies(proxy, "sure")
    assert last == 500
    assert len(proxy.dying["sure"].asked) == 1
