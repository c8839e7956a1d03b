"""The ledger sums to the raw events to the last nano-dollar, whoever dies while writing it."""

from __future__ import annotations

import random
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction

import pytest
from cost_month import DAY_MS, READ_USD_PER_GB, START_MS, month
from hypothesis import given, settings
from hypothesis import strategies as st
from obstore.store import MemoryStore

from rayburst.checkpoint.store import ObjectStore, StoreOptions
from rayburst.cost.apportion import apportion
from rayburst.cost.attribution import LaunchPrices, attribute, tell
from rayburst.cost.entries import NANO, PURPOSES, Entry, Owner, usd_of
from rayburst.cost.facts import Facts, Hold, dominant_shares
from rayburst.cost.ledger import Ledger
from rayburst.errors import PriceError
from rayburst.fleet.events import NodeEvent

DAY_PERIOD = {"period_ms": DAY_MS, "grace_ms": 0}
END_MS = START_MS + 31 * DAY_MS


class Died(Exception):
    """The writer's process is gone."""


class MortalStore(ObjectStore):
    """A store whose client dies before or after its n-th call."""

    def dies(self, at_call: int, *, after: bool) -> MortalStore:
        self._left, self._after, self.calls = at_call, after, 0
        return self

    def _mortal(self, call, *args, **kwargs):
        self.calls += 1
        if self.calls == self._left and not self._after:
            raise Died
        result = call(*args, **kwargs)
        if self.calls == self._left:
            raise Died
        return result

    def put(self, *args, **kwargs):
        return self._mortal(super().put, *args, **kwargs)

    def get(self, key):
        return self._mortal(super().get, key)

    def list(self, prefix=""):
        return iter(self._mortal(lambda: list(super(MortalStore, self).list(prefix))))


def on(backend: MemoryStore) -> MortalStore:
    store = MortalStore("memory://", backend, "", None, StoreOptions())
    return store.dies(0, after=False)


def raw_total_nano(facts: Facts, now_ms: int) -> int:
    """What the events alone say: for every node price times time, rounded once."""
    begun: dict[str, NodeEvent] = {}
    total = sum(charge.nano_usd or 0 for charge in facts.charges)
    ends = {e.node: round(e.t * 1000) for e in facts.events if e.kind == "gone"}
    for event in facts.events:
        if event.kind == "requested":
            begun[event.node] = event
    for node, event in begun.items():
        if event.price_usd_per_hour is not None:
            lived = ends.get(node, now_ms) - round(event.t * 1000)
            price = Fraction(Decimal(str(event.price_usd_per_hour)))
            total += round(lived * price * NANO / 3_600_000)
    per_gb = Fraction(Decimal(str(READ_USD_PER_GB)))
    for record in (r for run in facts.runs.values() for r in run if r["kind"] == "traffic"):
        total += round(record["received_bytes"] * per_gb)  # 10^-9 GB at 10^9 nano-dollars
    return total


def total_nano(entries: list[Entry]) -> int:
    return sum(entry.nano_usd or 0 for entry in entries)


def node_ms(entries: list[Entry]) -> int:
    return sum(entry.quantity for entry in entries if entry.line.unit == "ms")


@pytest.mark.parametrize("seed", [0, *(pytest.param(s, marks=pytest.mark.soak) for s in (1, 2))])
def test_a_month_sums_to_its_raw_events(seed):
    facts = month(seed)
    ledger = Ledger(on(MemoryStore()), period_ms=3_600_000)
    ledger.settle(facts, now_ms=END_MS)
    entries = ledger.entries(facts, now_ms=END_MS)
    assert total_nano(entries) == raw_total_nano(facts, END_MS)
    lives = tell(facts).lives
    assert node_ms(entries) == sum(x.end_ms(END_MS) - x.requested_ms for x in lives)
    assert {entry.line.purpose for entry in entries} >= {"useful", "lost", "restarting", "idle"}
    assert {entry.line.purpose for entry in entries} <= set(PURPOSES)
    moved = [r for r in facts.runs["first"] if r["kind"] == "traffic"]
    for unit, field in (("bytes read", "received_bytes"), ("bytes written", "sent_bytes")):
        lines = [e for e in entries if e.line.unit == unit]
        assert sum(e.quantity for e in lines) == sum(r[field] for r in moved)
        assert {e.line.owner.job for e in lines} == {"trains"}
        assert all((e.nano_usd is None) == (unit == "bytes written") for e in lines)
    unknown = [e for e in entries if e.line.pool == "odd"]
    assert unknown and all(e.nano_usd is None for e in unknown), "unknown is not zero"


def test_a_second_settlement_writes_nothing():
    facts = month(1, nodes=12)
    backend = MemoryStore()
    assert Ledger(on(backend), **DAY_PERIOD).settle(facts, now_ms=END_MS) > 20
    assert Ledger(on(backend), **DAY_PERIOD).settle(facts, now_ms=END_MS) == 0


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    ("days", "nodes"),
    [
        (2, 2),
        pytest.param(5, 3, marks=pytest.mark.soak),
        pytest.param(30, 12, marks=pytest.mark.soak),
    ],
    ids=["days", "week", "month"],
)
def test_a_writer_that_dies_at_any_point_leaves_a_right_ledger(days, nodes, after):
    facts = month(days, days=days, nodes=nodes)
    end_ms = START_MS + (days + 1) * DAY_MS
    calls = _calls(facts, days)
    died = 0
    for point in range(1, calls + 1):
        backend = MemoryStore()
        with pytest.raises(Died):
            _live(on(backend).dies(point, after=after), facts, days)
        died += 1
        _live(on(backend), facts, days)
        entries = Ledger(on(backend), **DAY_PERIOD).entries(facts, now_ms=end_ms)
        assert total_nano(entries) == raw_total_nano(facts, end_ms), f"died at call {point}"
    assert died == calls > days


def _calls(facts: Facts, days: int) -> int:
    store = on(MemoryStore())
    _live(store, facts, days)
    return store.calls


def _live(store: ObjectStore, facts: Facts, days: int) -> None:
    """A writer that wakes up now and then, and sees only what has happened."""
    ledger = Ledger(store, **DAY_PERIOD)
    for share in (0.1, 0.3, 0.55, 0.8, 1.0):
        now_ms = START_MS + round(share * (days + 1) * DAY_MS)
        ledger.settle(_seen_by(facts, now_ms), now_ms=now_ms)


def _seen_by(facts: Facts, now_ms: int) -> Facts:
    holds = [
        replace(h, end_ms=None if h.end_ms is None or h.end_ms > now_ms else h.end_ms)
        for h in facts.holds
        if h.start_ms <= now_ms
    ]
    return Facts(
        events=[e for e in facts.events if e.t * 1000 <= now_ms],
        holds=holds,
        runs={k: [r for r in log if r["t"] * 1000 <= now_ms] for k, log in facts.runs.items()},
        charges=[c for c in facts.charges if c.t_ms <= now_ms],
    )


def test_writers_that_die_again_and_again_and_facts_that_come_late():
    facts = month(7, nodes=12)
    rng = random.Random(7)
    backend = MemoryStore()
    late = [e for e in facts.events if rng.random() < 0.2]
    deaths = 0
    for _ in range(60):
        now_ms = START_MS + rng.randrange(31 * DAY_MS)
        seen = _seen_by(facts, now_ms)
        if rng.random() < 0.5:  # some events wait on a disk somewhere
            seen = replace(seen, events=[e for e in seen.events if e not in late])
        try:
            store = on(backend).dies(rng.randrange(1, 40), after=rng.random() < 0.5)
            Ledger(store, **DAY_PERIOD).settle(seen, now_ms=now_ms)
        except Died:
            deaths += 1
    assert deaths > 10
    last = Ledger(on(backend), **DAY_PERIOD)
    last.settle(facts, now_ms=END_MS)
    assert total_nano(last.entries(facts, now_ms=END_MS)) == raw_total_nano(facts, END_MS)


def test_two_writers_at_once_count_nothing_twice():
    facts = month(3, nodes=12)
    backend = MemoryStore()
    first, second = (Ledger(on(backend), **DAY_PERIOD) for _ in range(2))
    early = _seen_by(facts, START_MS + 10 * DAY_MS)
    first.settle(early, now_ms=START_MS + 10 * DAY_MS)
    second.settle(facts, now_ms=END_MS)
    first.settle(facts, now_ms=END_MS)
    second.settle(early, now_ms=START_MS + 10 * DAY_MS)  # it sees less, and takes some back
    first.settle(facts, now_ms=END_MS)
    assert total_nano(first.entries(facts, now_ms=END_MS)) == raw_total_nano(facts, END_MS)


def test_what_was_written_stands_when_its_facts_are_gone():
    facts = month(2, nodes=12)
    backend = MemoryStore()
    Ledger(on(backend), **DAY_PERIOD).settle(facts, now_ms=END_MS)
    read = Ledger(on(backend), **DAY_PERIOD).entries(Facts(), now_ms=END_MS)
    closed_ms = END_MS - END_MS % DAY_MS
    assert total_nano(read) == raw_total_nano(facts, closed_ms)


# one node by hand


def event(t: float, kind: str, price: float | None = 3.6, node: str = "n-1") -> NodeEvent:
    return NodeEvent(
        t=t, kind=kind, node=node, pool="n", market="spot", price_usd_per_hour=price, why=""
    )


def hold(job: str, start: float, end: float | None, **resources: float) -> Hold:
    return Hold(
        id=f"{job}-{start}",
        node="n-1",
        owner=Owner(job=job),
        start_ms=round(start * 1000),
        end_ms=None if end is None else round(end * 1000),
        resources=resources,
        total={"CPU": 4.0, "GPU": 2.0},
    )


def lines(facts: Facts, now: float) -> dict[tuple[str, str], tuple[int, Decimal]]:
    found = attribute(
        tell(facts), prices=LaunchPrices(), period=(0, 3_600_000), now_ms=round(now * 1000)
    )
    return {
        (e.line.owner.job, e.line.purpose): (e.quantity, usd_of(e.nano_usd or 0)) for e in found
    }


def test_a_shared_node_is_split_by_dominant_resource_and_the_rest_is_idle():
    facts = Facts(
        events=[event(0, "requested"), event(10, "up"), event(110, "gone")],
        holds=[hold("a", 20, 60, CPU=1, GPU=1), hold("b", 20, 110, CPU=1)],
    )
    assert lines(facts, 200) == {
        ("a", "restarting"): (10_000, Decimal("0.010")),  # the node started for a
        ("a", "useful"): (20_000, Decimal("0.020")),  # half of its GPUs for 40 s
        ("b", "useful"): (22_500, Decimal("0.0225")),  # a quarter of its CPUs for 90 s
        ("", "idle"): (57_500, Decimal("0.0575")),
    }


def test_shares_above_the_whole_are_scaled_and_one_owners_parts_are_added_first():
    assert dominant_shares([hold("a", 0, 1, CPU=4), hold("b", 0, 1, GPU=2)]) == {
        Owner(job="a"): Fraction(1, 2),
        Owner(job="b"): Fraction(1, 2),
    }
    assert dominant_shares([hold("a", 0, 1, CPU=1), hold("a", 0.5, 1, CPU=2)]) == {
        Owner(job="a"): Fraction(3, 4)
    }
    assert dominant_shares([hold("a", 0, 1)]) == {Owner(job="a"): Fraction(1)}


def run_log() -> list[dict]:
    common = {"rank": 0, "world": 1}
    steps = [
        {"t": t, "kind": "step", "step": s, "loss": 1.0, "duration_s": 10.0, **common}
        for t, s in ((30, 1), (40, 2), (50, 3), (80, 3), (90, 4))
    ]
    starts = [
        {"t": t, "kind": "start", "step": s, "host": "n-1", **common} for t, s in ((20, 0), (70, 2))
    ]
    return sorted([*steps, *starts], key=lambda r: r["t"])


def test_a_run_log_says_what_a_jobs_time_was():
    facts = Facts(
        events=[event(0, "requested"), event(10, "up"), event(100, "gone")],
        holds=[hold("a", 15, 100, CPU=4)],
        runs={"first": run_log()},
    )
    assert {key: ms for key, (ms, _) in lines(facts, 200).items()} == {
        ("a", "useful"): 40_000,  # steps 1, 2, 3 again, 4
        ("a", "lost"): 10_000,  # step 3, the first time
        ("a", "restarting"): 10_000 + 20_000,  # the node, and the workers after the loss
        ("a", "waiting"): 5_000 + 10_000,  # before its first worker, after its last step
        ("", "idle"): 5_000,
    }


def test_a_run_that_nobody_saw_hold_anything_pays_by_its_own_log():
    facts = Facts(
        events=[event(0, "requested"), event(10, "up"), event(100, "gone")],
        runs={"first": run_log()},
    )
    assert {job for job, _ in lines(facts, 200)} == {"first", ""}


@given(
    total=st.integers(-(10**12), 10**12),
    weights=st.dictionaries(st.integers(), st.fractions(0, 100), min_size=1, max_size=9),
)
@settings(deadline=None)
def test_what_is_dealt_out_sums_to_the_whole_and_nobody_is_a_unit_off(total, weights):
    whole = sum(weights.values(), Fraction(0))
    if whole == 0:
        if total:
            with pytest.raises(PriceError):
                apportion(total, weights)
        return
    dealt = apportion(total, weights)
    assert sum(dealt.values()) == total
    assert all(abs(dealt[key] - total * weights[key] / whole) < 1 for key in weights)
