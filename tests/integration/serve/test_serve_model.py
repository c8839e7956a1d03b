"""Served models on a real Ray Serve behind its HAProxy: both lanes, handles, growth, updates."""

from __future__ import annotations

import http.client
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families
from support import wait_for

from rayburst.serve.deploy import delete, deploy

from .conftest import Head

pytestmark = pytest.mark.timeout(280)
BODY = b"[1.0,2.0,3.0]"


def put(head: Head, name: str = "scaler", target: str = "scaler", **args: Any) -> str:
    """Deploys a model of served_models.py and gives its address."""
    app = {
        "name": name,
        "route_prefix": f"/{name}",
        "import_path": f"served_models:{target}",
        "args": {key: str(value) for key, value in args.items()},
    }
    http = {"host": "127.0.0.1", "port": head.serve_port}
    return deploy(head.dashboard_url, head.token, app=app, http=http, timeout_s=150).url


def replicas(head: Head, name: str = "scaler") -> dict[int, str]:
    """Process and state of each replica."""
    (deployment,) = head.details()["applications"][name]["deployments"].values()
    known = [replica for replica in deployment["replicas"] if "pid" in replica]  # not just wished
    return {replica["pid"]: replica["state"] for replica in known}


def metric(head: Head, name: str, application: str) -> float:
    """What Ray's metrics say of the fast path of an application, over its replicas."""
    families = text_string_to_metric_families(requests.get(head.metrics_url, timeout=30).text)
    return sum(
        sample.value
        for family in families
        for sample in family.samples
        if sample.name == name
        and sample.labels.get("application") == application
        and sample.labels.get("route") == f"/{application}/predict"
    )


def is_fast(answer: requests.Response) -> bool:
    return answer.status_code == 200 and "x-rayburst-lane" not in answer.headers


@dataclass
class Client:
    """A keep-alive client that does what HTTP says: it opens anew after `connection: close`."""

    url: str
    is_fresh: bool = False  # a connection for each request
    every_s: float = 0.0  # a request begins no sooner after the one before
    headers: dict[str, str] = field(default_factory=dict)
    seen: Counter[str] = field(default_factory=Counter)
    variants: Counter[str] = field(default_factory=Counter)  # of answers that say which
    closes: int = 0
    pids: set[int] = field(default_factory=set)
    errors: list[str] = field(default_factory=list)

    def run(self, stop: threading.Event) -> None:
        host, _, path = self.url.removeprefix("http://").partition("/")
        connection = http.client.HTTPConnection(host, timeout=60)
        next_s = time.monotonic()
        while not stop.wait(max(0.0, next_s - time.monotonic())):
            next_s = max(next_s + self.every_s, time.monotonic())
            try:
                connection.request("POST", f"/{path}/predict", body=BODY, headers=self.headers)
                answer = connection.getresponse()
                body = answer.read()
                self.seen[str(answer.status)] += 1
                if answer.status == 200 and (variant := answer.headers["x-rayburst-variant"]):
                    self.variants[variant] += 1
                if answer.status != 200:
                    self.errors.append(f"{answer.status} {body[:200]!r}")
                self.closes += answer.will_close
                if self.is_fresh:
                    connection.close()
            except (OSError, http.client.HTTPException) as error:
                self.seen[type(error).__name__] += 1
                self.errors.append(repr(error))
                connection.close()
        connection.close()


class Load:
    """Clients that ask without a break while something happens."""

    def __init__(
        self,
        url: str,
        clients: int,
        *,
        is_fresh: bool = False,
        every_s: float = 0.0,
        **headers: str,
    ) -> None:
        self.url = url
        self.clients = [Client(url, is_fresh, every_s, headers) for _ in range(clients)]
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=c.run, args=(self._stop,)) for c in self.clients]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *why: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def asked(self) -> int:
        return sum(client.seen.total() for client in self.clients)

    def more(self, count: int, *, timeout_s: float = 90) -> None:
        """Waits until so many more requests were answered."""
        wanted = self.asked() + count
        enough = lambda: True if self.asked() >= wanted else None  # noqa: E731
        wait_for(enough, what=f"{count} more requests", timeout_s=timeout_s)

    def ask_once(self) -> requests.Response:
        return requests.post(f"{self.url}/predict", data=BODY, timeout=30)

    def errors(self) -> list[str]:
        return [error for client in self.clients for error in client.errors]


def test_a_model_is_deployed_and_answers_on_the_fast_lane_and_by_serves_own(
    fast_head: Head,
) -> None:
    url = put(fast_head, factor=3)
    wait_for(
        lambda: True if is_fast(requests.post(f"{url}/predict", data=BODY, timeout=30)) else None,
        what="HAProxy knows the replica",
    )
    answer = requests.post(f"{url}/predict", data=BODY, timeout=30)
    assert answer.json()["out"] == [3.0, 6.0, 9.0]
    assert answer.headers["x-request-id"]
    slow = requests.post(f"{url}/predict?by=stock", data=BODY, timeout=30)
    assert slow.json()["out"] == [3.0, 6.0, 9.0]
    assert slow.headers["x-rayburst-lane"] == "stock"
    assert requests.post(f"{url}/predict", data=b"[1]", timeout=30).status_code == 422
    assert requests.get(f"{url}/healthz", timeout=30).json()["model"] == "Scaler"
    assert "rayburst_serve_requests_total" in requests.get(f"{url}/metrics", timeout=30).text
    stream = requests.post(f"{url}/stream", data=BODY, timeout=30)
    assert stream.text.startswith("data: 1.0\n\ndata: 2.0\n\n")
    paths = requests.get(f"{url}/openapi.json", timeout=30).json()["paths"]
    assert set(paths) == {"/predict", "/stream", "/healthz", "/metrics"}


def test_serves_own_metrics_count_all_and_time_some(fast_head: Head) -> None:
    url = put(fast_head, "counted")
    with Load(url, clients=4) as load:
        load.more(2000)
    answered = sum(client.seen["200"] for client in load.clients)
    counted = "ray_serve_deployment_request_counter_total"
    timed = "ray_serve_deployment_processing_latency_ms_count"
    all_counted = lambda: metric(fast_head, counted, "counted") == answered or None  # noqa: E731
    wait_for(all_counted, what=f"Serve to count {answered} requests", timeout_s=60)
    assert 0 < metric(fast_head, timed, "counted") < answered
    delete(fast_head.dashboard_url, fast_head.token, name="counted")


def test_another_deployment_asks_a_model_by_handle(fast_head: Head) -> None:
    url = put(fast_head, "front", "composed")
    assert requests.get(f"{url}/sum/2", timeout=60).json() == 30.0
    delete(fast_head.dashboard_url, fast_head.token, name="front")


def test_keep_alive_clients_see_no_error_while_replicas_come_change_and_go(
    fast_head: Head,
) -> None:
    url = put(fast_head, factor=2)
    first = set(replicas(fast_head))
    with Load(url, clients=8) as load:
        load.more(200)
        put(fast_head, factor=2, replicas=2)
        wait_for(lambda: True if len(replicas(fast_head)) == 2 else None, what="two replicas")
        load.more(200)
        put(fast_head, factor=4, replicas=2)  # an update replaces both
        gone = lambda: True if not first & set(replicas(fast_head)) else None  # noqa: E731
        wait_for(gone, what="the first replica is replaced")
        load.more(200)
        put(fast_head, factor=4, replicas=1)
        one = lambda: True if len(replicas(fast_head)) == 1 else None  # noqa: E731
        wait_for(one, what="one replica is left")
        load.more(200)
    assert load.errors() == []
    assert sum(client.closes for client in load.clients) > 0, "HAProxy was never reloaded"


def test_without_haproxy_the_slow_path_says_that_it_is_slow(head: Head) -> None:
    url = put(head, factor=7)
    answer = requests.post(f"{url}/predict", data=BODY, timeout=60)
    assert answer.json()["out"] == [7.0, 14.0, 21.0]
    assert answer.headers["x-rayburst-lane"] == "stock"
    logs = list(head.ray_folder.glob("session_latest/logs/serve/replica_*Scaler*.log"))
    assert any("about ten times the CPU" in log.read_text() for log in logs)
    delete(head.dashboard_url, head.token, name="scaler")
