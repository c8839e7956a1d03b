"""Keeps a fleet's books: looks at who holds what, counts what is stored, settles the ledger.

Run by the fleet's supervisor as `python -m rayburst.cost.bookkeeper FLEET_FOLDER`. It decides
nothing about nodes and nobody waits for it: it may die and be started again at any moment, or run
twice. Ray is asked over its HTTP API, as the SDK does.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import requests

from rayburst.checkpoint.store import ObjectStore
from rayburst.cost.bill import make_bill
from rayburst.cost.entries import Entry, Owner, nano_of
from rayburst.cost.facts import Charge, Hold
from rayburst.cost.ledger import PERIOD_MS, Ledger
from rayburst.cost.metrics import FleetMetrics, Sample
from rayburst.cost.reader import CHARGES, FactReader
from rayburst.cost.spent import spent_of
from rayburst.cost.usage import NodeSeen, UsageLog, read_holds, rows_of
from rayburst.errors import ObjectExistsError, PoolError, StoreError
from rayburst.fleet.events import IMPATIENT, EventLog
from rayburst.fleet.files import read_json, write_atomically
from rayburst.fleet.layout import FleetDir, FleetState
from rayburst.fleet.pools import open_pools

_LOOK_S = 5.0
_SETTLE_S = 60.0
_SAMPLE_S = 10.0
_RPC_S = 5.0
_MONTH_MS = 730 * 3_600_000
# Ray's head keeps 100,000 finished tasks; to render those every time takes half a core.
_LIVING = (("state", "=", "ALIVE"),)
_UNDER_WAY = (
    ("state", "!=", "FINISHED"),
    ("state", "!=", "FAILED"),
    ("type", "=", "NORMAL_TASK"),
)
_LOG = logging.getLogger("rayburst.bookkeeper")


class Bookkeeper:
    """One fleet's books. `tick` does one round; the clock is the caller's."""

    def __init__(
        self, fleet: FleetDir, store: ObjectStore, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._fleet = fleet
        self._clock = clock
        self._store = store
        self._usage = UsageLog(store)
        self._reader = FactReader(store, spool=fleet.spool, usage=self._usage)
        self._ledger = Ledger(store)
        self._settled_at = 0.0
        self._sampled_at = 0.0
        self._sample = Sample()
        self._events = EventLog(store, spool=fleet.spool)
        self._entries: list[Entry] = []

    @property
    def sample(self) -> Sample:
        """The fleet as it was last looked at, for the metrics."""
        return self._sample

    def tick(self) -> None:
        """Look, and settle when it is time. What cannot be reached now is for the next round.

        Budgets are held against what was settled: a head or a pool that cannot be asked who holds
        what does not keep the dollars from being counted.
        """
        now = self._clock()
        with _left_for_the_next_round():
            held = self._held(round(now * 1000))
            self._usage.update(held, now_ms=round(self._clock() * 1000))
        with _left_for_the_next_round():
            if now - self._settled_at >= _SETTLE_S:
                self.settle(round(now * 1000))
                self._settled_at = now
            if now - self._sampled_at >= _SAMPLE_S:
                self._take_sample(now)
                self._sampled_at = now

    def settle(self, now_ms: int) -> int:
        """Count what is stored, and write the periods that are over; how many objects."""
        self._count_stored(now_ms)
        facts = self._reader.read()
        written = self._ledger.settle(facts, now_ms=now_ms)
        self._entries = self._ledger.entries(facts, now_ms=now_ms)
        spent = spent_of(self._entries, at=now_ms / 1000)
        write_atomically(self._fleet.spent_file, spent.to_json())
        if written:
            _LOG.info("%d objects of the ledger written", written)
        return written

    def _take_sample(self, now: float) -> None:
        """What a scrape gets; the ledger's part is renewed when it is settled."""
        events = self._events.read()
        agent = read_json(self._fleet.agent_file) or {}
        self._sample = Sample(
            events=events,
            bill=make_bill(events, now=now, on_demand_usd_per_hour=None),
            entries=self._entries,
            pending=len(agent.get("pending", ())),
        )

    def _held(self, now_ms: int) -> Mapping[str, Hold]:
        state = self._fleet.read_state()
        ask = _Asker(state.dashboard_url, self._fleet.token())
        hosts = {
            host.address: host.id
            for pool in open_pools(self._fleet).values()
            for host in pool.hosts()
            if host.lives
        }
        nodes = {
            str(row["node_id"]): NodeSeen(
                host=hosts[row["node_ip"]], total=row.get("resources_total") or {}
            )
            for row in ask.state("nodes")
            if row.get("state") == "ALIVE" and row.get("node_ip") in hosts
        }
        if not nodes:
            return {}
        actors, tasks = ask.state("actors", *_LIVING), ask.state("tasks", *_UNDER_WAY)
        return read_holds(actors, tasks, ask.jobs(), nodes, now_ms=now_ms)

    def _count_stored(self, now_ms: int) -> None:
        """One charge a run and period: the bytes it keeps, for the length of a period."""
        start = now_ms - now_ms % PERIOD_MS
        usd_per_gb_month = self._fleet.spec().object_store.usd_per_gb_month
        for run in self._store.folders("runs"):
            key = f"{CHARGES}{start:015d}-storage-{run}.json"
            if self._store.exists(key):
                continue
            size = sum(info.size_bytes for info in self._store.list(f"runs/{run}"))
            charge = Charge(
                id=key,
                t_ms=start,
                owner=Owner(job=run, model=run),
                purpose="storage",
                quantity=size * (PERIOD_MS // 1000),
                unit="byte-seconds",
                nano_usd=_kept_nano(size, usd_per_gb_month),
            )
            try:
                self._store.put(key, json.dumps(asdict(charge)).encode(), if_absent=True)
            except ObjectExistsError:
                continue  # another bookkeeper counted it


@contextlib.contextmanager
def _left_for_the_next_round() -> Iterator[None]:
    try:
        yield
    except (PoolError, StoreError, requests.RequestException) as error:
        _LOG.warning("next round: %s", error)


def _kept_nano(size_bytes: int, usd_per_gb_month: float | None) -> int | None:
    """What so many bytes cost for one period; a month is 730 hours, as clouds count it."""
    if usd_per_gb_month is None:
        return None
    gb_months = Fraction(size_bytes * PERIOD_MS, 10**9 * _MONTH_MS)
    return nano_of(gb_months * Fraction(Decimal(str(usd_per_gb_month))))


class _Asker:
    """Ray's dashboard, asked with the fleet's token."""

    def __init__(self, url: str, token: str) -> None:
        self._url = url
        self._headers = {"Authorization": f"Bearer {token}"}

    def state(self, kind: str, *wanted: tuple[str, str, str]) -> Any:
        """Rows for which all of `wanted`, each a (field, "=" or "!=", value), hold."""
        asked: dict[str, Any] = {"detail": "true", "limit": "10000"}
        for place, name in enumerate(("filter_keys", "filter_predicates", "filter_values")):
            asked[name] = [one[place] for one in wanted]
        return rows_of(self._get(f"/api/v0/{kind}", asked))

    def jobs(self) -> Any:
        return self._get("/api/jobs/", {})

    def _get(self, path: str, params: Mapping[str, Any]) -> Any:
        reply = requests.get(self._url + path, params=params, headers=self._headers, timeout=_RPC_S)
        reply.raise_for_status()
        return reply.json()


def _serve_metrics(keeper: Bookkeeper, state: FleetState) -> None:
    from prometheus_client import CollectorRegistry, start_http_server

    registry = CollectorRegistry()
    registry.register(FleetMetrics(lambda: keeper.sample))
    start_http_server(state.ports["books"], addr=state.head_address, registry=registry)


def main(folder: Path) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    fleet = FleetDir(folder)
    state = fleet.read_state()
    store = ObjectStore.open(state.store_uri, IMPATIENT)
    keeper = Bookkeeper(fleet, store)
    _serve_metrics(keeper, state)
    while True:
        started = time.monotonic()
        keeper.tick()
        time.sleep(max(0.0, _LOOK_S - (time.monotonic() - started)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
