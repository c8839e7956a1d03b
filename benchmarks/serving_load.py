"""Load for the serving benchmark: wrk in a closed loop, and a Poisson stream in an open one.

wrk is compiled and costs some 10 microseconds a request. The open loop is Python on uvloop: it
says how late it sent (`sent_late_p99_ms`) and what CPU it took, so it can be seen that it was not
the bottleneck. Latency in the open loop counts from the moment a request was due.
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import tempfile
import time
from typing import Any
from urllib.parse import urlsplit

BODY = json.dumps([round(random.Random(0).random(), 4) for _ in range(64)])

_LUA = """
wrk.method = "POST"
wrk.headers["content-type"] = "application/json"
wrk.body = [==[%s]==]
done = function(summary, latency, requests)
  io.stderr:write(string.format(
    '{"requests":%%d,"us":%%d,"bad":%%d,"socket":%%d,"p50":%%f,"p95":%%f,"p99":%%f}\\n',
    summary.requests, summary.duration, summary.errors.status,
    summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout,
    latency:percentile(50) / 1000, latency:percentile(95) / 1000, latency:percentile(99) / 1000))
end
"""


def closed(url: str, *, connections: int, seconds: float, body: str = BODY) -> dict[str, Any]:
    """As fast as the connections go, each waiting for its answer."""
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(_LUA % body)
        script.flush()
        command = [
            "wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", "--timeout", "20s",
            "-s", script.name, url,
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    if done.returncode or not done.stderr.strip():
        raise RuntimeError(f"wrk failed: {done.stdout} {done.stderr}")
    told = json.loads(done.stderr.strip().splitlines()[-1])
    return {
        "requests": told["requests"],
        "rps": (told["requests"] - told["bad"]) / (told["us"] / 1e6),  # a refusal is no answer
        "errors": told["bad"] + told["socket"],
        **{f"{p}_ms": told[p] for p in ("p50", "p95", "p99")},
    }


class _Connection(asyncio.Protocol):
    """One keep-alive connection; `busy` from a request to the end of its answer."""

    def __init__(self, request: bytes, done: Any, lost: Any) -> None:
        self._request, self._done, self._lost = request, done, lost
        self._data = b""
        self.due_s = 0.0
        self.is_busy = False

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def send(self, due_s: float) -> None:
        self.due_s, self.is_busy = due_s, True
        self.transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._data += data
        head, mark, rest = self._data.partition(b"\r\n\r\n")
        if not mark:
            return
        lower = head.lower()
        length = int(lower.partition(b"content-length: ")[2].split(b"\r\n")[0])
        if len(rest) >= length:
            self._data, self.is_busy = b"", False
            self._done(self, int(head[9:12]), b"connection: close" in lower)

    def connection_lost(self, why: Any) -> None:
        self._lost(self)


async def _open(url: str, rate: float, seconds: float, seed: int) -> dict[str, Any]:
    parts = urlsplit(url)
    request = (
        f"POST {parts.path} HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n"
        f"content-length: {len(BODY)}\r\n\r\n{BODY}"
    ).encode()
    loop, free, waiting = asyncio.get_running_loop(), [], []
    latency, lateness, errors = [], [], 0

    def done(connection: Any, status: int, closes: bool) -> None:
        nonlocal errors
        errors += status != 200
        latency.append(loop.time() - connection.due_s)
        if closes:
            connection.transport.close()
        elif waiting:
            connection.send(waiting.pop(0))
        else:
            free.append(connection)

    def lost(connection: Any) -> None:
        nonlocal errors
        errors += connection.is_busy
        if connection in free:
            free.remove(connection)

    for _ in range(256):
        _, connection = await loop.create_connection(
            lambda: _Connection(request, done, lost), parts.hostname, parts.port
        )
        free.append(connection)
    rng, start_s, cpu_s = random.Random(seed), loop.time() + 0.05, time.process_time()
    due_s, sent = start_s, 0
    while (due_s := due_s + rng.expovariate(rate)) < start_s + seconds:
        wait_s = due_s - loop.time()
        if wait_s > 0:
            await asyncio.sleep(wait_s)
        lateness.append(max(0.0, loop.time() - due_s))
        sent += 1
        if free:
            free.pop().send(due_s)
        else:
            waiting.append(due_s)
    give_up_s = loop.time() + 10
    while len(latency) + errors < sent and loop.time() < give_up_s:
        await asyncio.sleep(0.01)
    errors += sent - min(sent, len(latency))
    cpu_s = time.process_time() - cpu_s
    latency.sort()
    lateness.sort()
    at = lambda values, p: 1000 * values[min(len(values) - 1, int(p * len(values)))]  # noqa: E731
    return {
        "requests": sent,
        "rps": len(latency) / seconds,
        "errors": errors,
        **{f"p{round(100 * p)}_ms": at(latency, p) for p in (0.5, 0.95, 0.99)},
        "sent_late_p99_ms": at(lateness, 0.99),
        "client_cpu_ms": 1000 * cpu_s / max(1, sent),
    }


def poisson(url: str, *, rate: float, seconds: float, seed: int) -> dict[str, Any]:
    """Requests that come whether the server keeps up or not."""
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_open(url, rate, seconds, seed))
