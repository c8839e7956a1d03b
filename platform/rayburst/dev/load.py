"""A burst of concurrent requests, measured: every request's latency and error."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import requests


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadResult:
    """Latencies in milliseconds over all requests, failed ones included."""

    requests: int
    errors: int
    p50_ms: float
    p99_ms: float
    requests_per_s: float
    first_error: str


def send_all(
    url: str, bodies: Sequence[dict[str, Any]], *, connections: int, timeout_s: float
) -> LoadResult:
    """POST every body over `connections` keep-alive connections at once; at least two bodies."""
    session = requests.Session()
    adapter = requests.adapters.HTTPAdapter(pool_connections=1, pool_maxsize=connections)
    session.mount("http://", adapter)

    def send(body: dict[str, Any]) -> tuple[float, str]:
        start = time.perf_counter()
        try:
            reply = session.post(url, json=body, timeout=timeout_s)
            error = "" if reply.ok else f"{reply.status_code}: {reply.text[:200]}"
        except requests.RequestException as problem:
            error = str(problem)
        return (time.perf_counter() - start) * 1000, error

    start = time.perf_counter()
    with session, ThreadPoolExecutor(max_workers=connections) as pool:
        results = list(pool.map(send, bodies))
    took_s = time.perf_counter() - start
    latencies = [latency for latency, _ in results]
    errors = [error for _, error in results if error]
    percentiles = statistics.quantiles(latencies, n=100, method="inclusive")
    return LoadResult(
        requests=len(results),
        errors=len(errors),
        p50_ms=percentiles[49],
        p99_ms=percentiles[98],
        requests_per_s=len(results) / took_s,
        first_error=errors[0] if errors else "",
    )
