"""Rates over replicas, replicas by demand, and nodes that are taken away under load."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import requests
from support import wait_for

from rayburst.serve.deploy import delete
from rayburst.serve.rates import RateLimit

from .conftest import Head, run_cli
from .test_serve_model import BODY, Load, put, replicas

pytestmark = pytest.mark.timeout(280)


def running(head: Head, name: str) -> list[int]:
    return [pid for pid, state in replicas(head, name).items() if state == "RUNNING"]


def keeper_of_rates(head: Head) -> int | None:
    """The process of the actor that keeps the buckets."""
    words = ("ray", "list", "actors", "--format", "json", "--filter", "name=rayburst-rates")
    listed = run_cli(head, *words)
    (actor,) = json.loads(listed[listed.index("[") : listed.rindex("]") + 1])
    return int(actor["pid"]) if actor["state"] == "ALIVE" else None


@dataclass
class Tenant:
    """Clients of one tenant that ask without a break; errors of connections count as such."""

    url: str
    name: str
    statuses: list[int] = field(default_factory=list)
    waits_s: list[float] = field(default_factory=list)
    pids: set[int] = field(default_factory=set)

    def ask(self, session: requests.Session) -> None:
        try:
            answer = session.post(
                f"{self.url}/predict",
                data=BODY,
                headers={"x-rayburst-tenant": self.name},
                timeout=60,
            )
        except requests.ConnectionError:
            self.statuses.append(0)  # its replica was killed
            return
        if answer.status_code == 200:
            self.pids.add(answer.json()["pid"])
        if answer.status_code == 429:
            self.waits_s.append(answer.json()["retry_after_s"])
        self.statuses.append(answer.status_code)

    def clients(self, stop: threading.Event, count: int) -> list[threading.Thread]:
        def run() -> None:
            with requests.Session() as session:
                while not stop.is_set():
                    self.ask(session)

        return [threading.Thread(target=run) for _ in range(count)]


def test_a_rate_holds_over_replicas_whoever_is_killed_and_hurts_nobody_else(
    fast_head: Head,
) -> None:
    limit = RateLimit(rate=20, burst=10)
    options = {
        "replicas": {"least": 2, "cpus": 0.1},
        "tenants": {"greedy": {"rate": limit.rate, "burst": limit.burst}},
    }
    url = put(fast_head, "limited", options=json.dumps(options))
    greedy, modest = Tenant(url, "greedy"), Tenant(url, "modest")
    # before there is load, which makes Ray's own commands slow
    keeper = wait_for(lambda: keeper_of_rates(fast_head), what="the actor that keeps the buckets")
    stop = threading.Event()
    clients = greedy.clients(stop, 4)
    begun_s = time.monotonic()
    for client in clients:
        client.start()

    def asked(count: int) -> Callable[[], bool | None]:
        wanted = len(greedy.statuses) + count
        return lambda: True if len(greedy.statuses) >= wanted else None

    try:
        both = lambda: True if len(greedy.pids) == 2 else None  # noqa: E731
        wait_for(both, what="both replicas answered", timeout_s=60)
        with requests.Session() as session:
            for _ in range(100):
                modest.ask(session)
        assert modest.statuses == [200] * 100, "the greedy one cost another its place"
        # the actor that keeps the buckets, then a replica with the block that it holds
        os.kill(keeper, signal.SIGKILL)
        wait_for(asked(300), what="requests after the actor's death", timeout_s=60)
        victim = next(iter(greedy.pids))
        os.kill(victim, signal.SIGKILL)
        fresh = lambda: True if len(greedy.pids) == 3 else None  # noqa: E731
        wait_for(fresh, what="a third replica answered", timeout_s=90)
        wait_for(asked(100), what="requests after the replica's death", timeout_s=60)
    finally:
        stop.set()
        for client in clients:
            client.join()
        took_s = time.monotonic() - begun_s
        delete(fast_head.dashboard_url, fast_head.token, name="limited")
    admitted = greedy.statuses.count(200)
    assert admitted <= limit.rate * took_s + limit.burst + 3 * limit.block
    assert admitted >= 0.5 * limit.rate * took_s, "the actor came back, and the rate with it"
    assert greedy.statuses.count(429) > 300
    assert set(greedy.statuses) <= {200, 429, 0, 503}
    assert all(0 < wait_s <= 2 for wait_s in greedy.waits_s)


def test_replicas_follow_the_demand_down_to_none_and_back(fast_head: Head) -> None:
    options = {
        "slo_ms": 2000,
        "max_batch": 1,
        "replicas": {"least": 0, "most": 2, "cpus": 0.1, "up_after_s": 1, "down_after_s": 2},
    }
    url = put(fast_head, "elastic", seconds=0.05, options=json.dumps(options))
    with Load(url, clients=3) as load:  # they can ask 20 times a second of one replica
        two = lambda: True if len(running(fast_head, "elastic")) == 2 else None  # noqa: E731
        wait_for(two, what="two replicas", timeout_s=90)
        load.more(100)
        assert load.errors() == []
    none = lambda: True if not replicas(fast_head, "elastic") else None  # noqa: E731
    wait_for(none, what="no replica", timeout_s=90)
    answer = requests.post(f"{url}/predict", data=BODY, timeout=90)  # waits until one is there
    assert answer.status_code == 200, answer.text
    assert answer.json()["out"] == [2.0, 4.0, 6.0]
    delete(fast_head.dashboard_url, fast_head.token, name="elastic")
