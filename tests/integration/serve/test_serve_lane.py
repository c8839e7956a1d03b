"""The fast lane over real sockets: answers, order, limits, and everything that strangers send."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import requests
import uvicorn
from support import wait_for

from rayburst.serve.asgi import build_app
from rayburst.serve.codec import Codec
from rayburst.serve.endpoint import Endpoint
from rayburst.serve.lanes import Lane, protocol_for
from rayburst.serve.options import ModelOptions

BODY = b"[1.0,2.0,3.0]"
ANSWER = [2.0, 4.0, 6.0]


class Doubler:
    """Doubles; a batch waits while `gate` is closed; -1 poisons its own request."""

    example = np.zeros(3, np.float32)

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.batches: list[int] = []

    def predict(self, batch: np.ndarray) -> np.ndarray:
        self.batches.append(len(batch))
        assert self.gate.wait(30)
        if (batch == -1).any():
            raise ArithmeticError("poison")
        with np.errstate(over="ignore"):  # twice the largest float is this model's own affair
            return batch * 2

    def stream(self, value: Any) -> Iterator[Any]:
        yield from value


@dataclass
class Running:
    """A server on a thread of its own, as a replica has it, without Ray."""

    port: int
    model: Doubler
    lane: Lane
    seen: list[int] = field(default_factory=list)
    ongoing: list[int] = field(default_factory=lambda: [0])

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def works(self) -> bool:
        answer = requests.post(self.url("/predict"), data=BODY, timeout=30)
        return answer.status_code == 200 and answer.json() == ANSWER


@pytest.fixture
def running(monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    model = Doubler()
    options = ModelOptions(slo_ms=20_000, max_batch=8, max_body_bytes=100_000)
    endpoint = Endpoint(model, options, Codec.of(Doubler), name="Doubler")
    endpoint.warm_up(Doubler.example)
    model.batches.clear()
    made: dict[str, Any] = {}
    up, down = threading.Event(), []

    async def serve() -> None:
        endpoint.attach()
        seen, ongoing = [], [0]
        lane = Lane(
            endpoint,
            frozenset({b"/predict"}),
            ongoing=lambda change: ongoing.__setitem__(0, ongoing[0] + change),
            seen=lambda status, took_s, request_id: seen.append(status),
        )
        watch = asyncio.create_task(lane.watch(every_s=0.05))
        config = uvicorn.Config(
            build_app(endpoint, example=Doubler.example),
            http=protocol_for(lane), lifespan="off", log_level=None, log_config=None,
        )  # fmt: skip
        server = uvicorn.Server(config)
        listener = socket.create_server(("127.0.0.1", 0))
        made.update(lane=lane, port=listener.getsockname()[1], seen=seen, ongoing=ongoing)
        down.append(lambda: setattr(server, "should_exit", True))
        up.set()
        await server._serve(sockets=[listener])
        watch.cancel()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    assert up.wait(30)
    yield Running(model=model, **made)
    model.gate.set()
    down[0]()
    thread.join(30)
    assert not thread.is_alive()


def request(body: bytes = BODY, *headers: str, path: str = "/predict") -> bytes:
    lines = [f"POST {path} HTTP/1.1", "host: x", f"content-length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def read_responses(sock: socket.socket, count: int) -> list[tuple[int, bytes]]:
    """That many responses with a content-length, or fewer if the server closes."""
    data, found = b"", []
    while len(found) < count:
        head, mark, rest = data.partition(b"\r\n\r\n")
        if mark:
            length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0] or 0)
            if len(rest) >= length:
                found.append((int(head.split()[1]), rest[:length]))
                data = rest[length:]
                continue
        try:
            more = sock.recv(65536)
        except ConnectionResetError:
            more = b""
        if not more:
            return found
        data += more
    return found


def test_a_keep_alive_connection_is_answered_again_and_again_with_its_request_id(
    running: Running,
) -> None:
    with requests.Session() as session:
        for n in range(20):
            headers = {"x-request-id": f"mine-{n}"}
            answer = session.post(running.url("/predict"), data=BODY, headers=headers, timeout=30)
            assert answer.json() == ANSWER
            assert answer.headers["x-request-id"] == f"mine-{n}"
            assert "x-rayburst-lane" not in answer.headers  # the fast one says nothing
    assert running.seen == [200] * 20
    assert running.ongoing == [0]


def test_requests_that_meet_share_a_batch_and_one_poisoned_body_fails_alone(
    running: Running,
) -> None:
    running.model.gate.clear()
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(running.connect()) for _ in range(9)]
        socks[0].sendall(request())
        wait_for(lambda: running.model.batches or None, what="the first batch is under way")
        bodies = [BODY, b"[-1,0,0]", b"[", b"[1,2]", b"", BODY, BODY, BODY]
        for sock, body in zip(socks[1:], bodies, strict=True):
            sock.sendall(request(body))
        arrived = [6]  # one under way and five whose bodies can be used
        wait_for(lambda: True if running.ongoing == arrived else None, what="all have arrived")
        running.model.gate.set()
        statuses = [read_responses(sock, 1)[0][0] for sock in socks]
    assert statuses == [200, 200, 500, 422, 422, 422, 200, 200, 200]
    assert running.model.batches[:2] == [1, 5]


def test_pipelined_requests_are_answered_in_order_also_over_both_ways(running: Running) -> None:
    with running.connect() as sock:
        slow = request(BODY, path="/predict?stock")
        health = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"
        sock.sendall(
            request(b"[1,0,0]") + slow + request(b"[2,0,0]") + health + request(b"[3,0,0]")
        )
        answers = read_responses(sock, 5)
    assert [status for status, _ in answers] == [200] * 5
    bodies = [json.loads(body) for _, body in answers]
    assert [bodies[0][0], bodies[1], bodies[2][0], bodies[4][0]] == [2.0, ANSWER, 4.0, 6.0]
    assert bodies[3]["status"] == "ok"


def test_a_client_that_goes_is_not_computed(running: Running) -> None:
    running.model.gate.clear()
    first, gone = running.connect(), running.connect()
    first.sendall(request())
    wait_for(lambda: running.model.batches or None, what="a batch is under way")
    gone.sendall(request())
    wait_for(lambda: True if running.ongoing == [2] else None, what="it is queued")
    gone.close()
    wait_for(lambda: True if running.ongoing == [1] else None, what="it has left")
    running.model.gate.set()
    assert read_responses(first, 1)[0][0] == 200
    assert running.works()
    assert running.model.batches == [1, 1]
    assert 499 in running.seen
    first.close()


def test_a_deadline_that_cannot_be_met_is_refused_at_once_with_a_time_to_come_back(
    running: Running,
) -> None:
    assert running.works()
    running.model.gate.clear()
    with running.connect() as first:
        first.sendall(request())
        wait_for(lambda: True if len(running.model.batches) == 2 else None, what="it is busy")
        headers = {"x-rayburst-deadline-ms": "0.001"}
        answer = requests.post(running.url("/predict"), data=BODY, headers=headers, timeout=30)
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.json()["retry_after_s"] > 0
        running.model.gate.set()


def test_what_takes_longer_than_serves_time_out_is_answered_504(running: Running) -> None:
    running.lane.timeout_s = 0.2
    running.model.gate.clear()
    with running.connect() as sock:
        sock.sendall(request())
        assert read_responses(sock, 1)[0][0] == 504
    running.model.gate.set()
    running.lane.timeout_s = None
    assert running.works()


def test_a_body_of_100_mb_is_refused_and_never_held(running: Running) -> None:
    assert running.works()
    before = psutil.Process().memory_info().rss
    chunk = b"x" * (1 << 20)
    for head in (
        b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: 104857600\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n",
    ):
        with running.connect() as sock:
            sock.sendall(head)
            sent = 0
            try:
                while sent < 100:
                    sock.sendall(b"100000\r\n" + chunk + b"\r\n" if b"chunked" in head else chunk)
                    sent += 1
            except (ConnectionError, TimeoutError):
                pass  # the server has closed: what it had to say is read below
            answers = read_responses(sock, 1)
            assert not answers or answers[0][0] == 413
    expecting = running.connect()
    expecting.sendall(
        b"POST /predict HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\n"
        b"content-length: 104857600\r\n\r\n"
    )
    assert read_responses(expecting, 1)[0][0] == 413
    expecting.close()
    gc.collect()
    assert psutil.Process().memory_info().rss - before < 50 << 20
    assert running.works()
    wait_for(lambda: True if running.lane.buffered == 0 else None, what="nothing is held")


def test_slow_senders_are_cut_off_and_cost_nobody_else(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rayburst.serve.lanes.READ_S", 0.5)
    starts = [
        b"",
        b"POST /pre",
        b"POST /predict HTTP/1.1\r\nhost: x\r\nx-slow: ",
        b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: 13\r\n\r\n[1",
    ]
    socks = [running.connect() for _ in range(100)]
    for n, sock in enumerate(socks):
        sock.sendall(starts[n % len(starts)])
    assert running.works()
    for n, sock in enumerate(socks):
        got = sock.recv(4096)
        assert got.startswith(b"HTTP/1.1 408") if n % len(starts) > 1 else True
        sock.close()
    wait_for(lambda: True if not running.lane.reading else None, what="all are cut off")
    assert running.works()


def test_headers_without_end_are_refused(running: Running) -> None:
    for flood in (b"x-a: b\r\n" * 200, b"x-a: " + b"b" * 100_000 + b"\r\n"):
        with running.connect() as sock:
            sock.sendall(b"POST /predict HTTP/1.1\r\nhost: x\r\n" + flood + b"\r\n")
            assert sock.recv(4096).startswith((b"HTTP/1.1 431", b"HTTP/1.1 400"))
    assert running.works()


def test_expect_100_continue_is_answered(running: Running) -> None:
    with running.connect() as sock:
        head, _, body = request(BODY, "expect: 100-continue").partition(b"\r\n\r\n")
        sock.sendall(head + b"\r\n\r\n")
        assert sock.recv(100).startswith(b"HTTP/1.1 100")
        sock.sendall(body)
        assert read_responses(sock, 1) == [(200, b"[2.0,4.0,6.0]")]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content-type": "text/plain"}, 415),
        ({"content-type": "application/x-npy"}, 422),
        ({"x-rayburst-deadline-ms": "soon"}, 422),
        ({"x-rayburst-deadline-ms": "-5"}, 422),
        ({"x-rayburst-deadline-ms": "nan"}, 422),
        ({"x-rayburst-priority": "99"}, 422),
        ({"content-type": "application/json; charset=utf-8", "accept": "text/html"}, 200),
        ({"x-rayburst-priority": "0", "x-rayburst-deadline-ms": "10000"}, 200),
        ({"x-request-id": "y" * 5000}, 200),
    ],
)
@pytest.mark.parametrize("path", ["/predict", "/predict?stock"])
def test_headers_are_heeded_or_refused_the_same_on_both_ways(
    running: Running, headers: dict[str, str], status: int, path: str
) -> None:
    answer = requests.post(running.url(path), data=BODY, headers=headers, timeout=30)
    assert answer.status_code == status, answer.text
    assert status == 200 or answer.json()["error"]


def test_random_bytes_never_bring_a_500_or_a_hang(running: Running) -> None:
    rng = random.Random(11)
    parts = [
        b"POST /predict HTTP/1.1\r\n", b"GET /healthz HTTP/1.1\r\n", b"host: x\r\n", b"\r\n", BODY,
        b"content-length: 13\r\n", b"content-length: -1\r\n", b"content-length: 99\r\n",
        b"transfer-encoding: chunked\r\n", b"0\r\n\r\n", b"upgrade: websocket\r\n",
        b"connection: upgrade\r\n", b"connection: close\r\n", b"\x00\xff\xfe", b"HTTP/2.0\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"expect: 100-continue\r\n", request(),
    ]  # fmt: skip
    for _ in range(400):
        with running.connect() as sock:
            sock.sendall(b"".join(rng.choices(parts, k=rng.randint(1, 9))))
            sock.shutdown(socket.SHUT_WR)
            got, deadline = b"", time.monotonic() + 30
            while more := _received(sock):
                got += more
                assert time.monotonic() < deadline, "it hangs"
            assert b"HTTP/1.1 500" not in got
    assert running.works()
    wait_for(lambda: True if running.ongoing == [0] else None, what="nothing is left over")
    wait_for(lambda: True if running.lane.buffered == 0 else None, what="no byte is held")


def _received(sock: socket.socket) -> bytes:
    try:
        return sock.recv(65536)
    except ConnectionResetError:
        return b""


def test_a_stream_comes_piece_by_piece(running: Running) -> None:
    answer = requests.post(running.url("/stream"), data=BODY, timeout=30)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.text.split("\n\n")[:3] == ["data: 1.0", "data: 2.0", "data: 3.0"]


def test_the_metrics_page_counts_what_was_asked(running: Running) -> None:
    for _ in range(3):
        assert running.works()
    page = requests.get(running.url("/metrics"), timeout=30).text
    assert 'rayburst_serve_requests_total{model="Doubler",status="200"} 3.0' in page
    assert "rayburst_serve_batch_size_bucket" in page
    described = requests.get(running.url("/openapi.json"), timeout=30).json()
    assert described["paths"]["/predict"]["post"]["requestBody"]["content"].keys() >= {
        "application/json",
        "application/x-npy",
    }


def test_what_schemathesis_makes_of_the_interface_is_answered_as_it_is_described(
    running: Running, tmp_path: Path
) -> None:
    """Valid and invalid bodies, headers and methods: no 500, no status or body it does not name."""
    config = tmp_path / "schemathesis.toml"  # a refusal and a deadline that passed are answers
    config.write_text(
        '[checks]\nnot_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", 503, 504]\n'
        "[generation]\nallow-extra-parameters = false\n"  # headers that nobody knows do no harm
    )
    command = [
        str(Path(sys.executable).parent / "schemathesis"), f"--config-file={config}", "run",
        running.url("/openapi.json"),
        "--max-examples=60", "--seed=1", "--generation-database=none", "--no-color",
        "--exclude-path=/stream", "--request-timeout=30",
    ]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=200, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout[-6000:]
    assert len(running.seen) > 60, "the lane was hardly asked"
    assert running.works()
