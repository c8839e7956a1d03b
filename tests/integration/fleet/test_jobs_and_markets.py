"""Jobs with terms on a real fleet whose markets come and go, asserted from the node events.

Minutes, most of them Ray's starts: all but the first run in `make soak`.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support import wait_for

from rayburst.dev.embedded import down, up
from rayburst.fleet.recorder import read_ticks, replanned, said
from rayburst.sdk import connect

STEADY = Path(__file__).with_name("steady.py")
SPEC = """
name: bazaar
object_store: {kind: embedded}
limits: {idle_timeout: 5s, drain: 8s}
pools:
  - {name: rack, kind: process, market: on-prem, shape: {cpus: 1, memory: 1GiB}, zone: home,
     price: 0.35 USD/h, hosts: {max: 1}}
  - {name: spot-a, kind: process, market: spot, shape: {cpus: 1, memory: 1GiB}, zone: cloud-a,
     price: 0.92 USD/h, hosts: {max: 1}}
  - {name: cloud, kind: process, market: on-demand, shape: {cpus: 1, memory: 1GiB}, zone: cloud-a,
     price: 3.06 USD/h, hosts: {max: 1}}
"""
pytestmark = pytest.mark.timeout(900)


class Training:
    """A steady job and the pools that its groups of workers have started in."""

    def __init__(self, platform, folder: Path, run: str, *, steps: int, **terms) -> None:
        words = f"--run {run} --storage {folder} --steps {steps} --step-s 0.2"
        entrypoint = f"python {STEADY} {words}"
        self.job = platform.submit(entrypoint, working_dir=None, submission_id=run, **terms)
        self._platform = platform
        self._starts = folder / run / "starts"

    def starts(self) -> list[dict]:
        if not self._starts.exists():
            return []
        return [json.loads(line) for line in self._starts.read_text().splitlines()]

    def wait_on(self, pool: str, *, since: int = 0) -> dict:
        """Until a group started in `pool`, not counting the first `since` starts."""

        def probe():
            assert self.job.status in ("PENDING", "RUNNING"), self.job.logs()[-3000:]
            return next((s for s in self.starts()[since:] if s["pool"] == pool), None)

        return wait_for(probe, what=f"{self.job.id} to train on {pool}", timeout_s=400)

    def line(self):
        return next((j for j in self._platform.queue().jobs if j.job == self.job.id), None)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    root = tmp_path_factory.mktemp("bazaar")
    (root / "fleet.yaml").write_text(SPEC)
    fleet = up(root / "fleet.yaml", root=root)
    try:
        yield fleet
    finally:
        assert down(fleet).clean


@pytest.fixture(scope="module")
def platform(fleet):
    return connect(root=fleet.path.parents[1])


@pytest.fixture
def train(platform, tmp_path):
    """Start steady jobs; what still runs at the end of a test is stopped."""
    started = []

    def go(run: str, *, steps: int, **terms) -> Training:
        started.append(Training(platform, tmp_path, run, steps=steps, **terms))
        return started[-1]

    yield go
    for training in started:
        training.job.stop()


def node_events(platform, pool: str) -> dict[str, dict[str, float]]:
    """Host -> kind -> time, for the hosts of a pool."""
    found: dict[str, dict[str, float]] = {}
    for event in platform.events():
        if event.pool == pool:
            found.setdefault(event.node, {})[event.kind] = event.t
    return found


def test_on_demand_comes_when_a_market_vanishes_and_a_floor_needs_it(fleet, platform, train):
    platform.market("rack", hosts=0, notice_s=0)
    training = train("nomad", steps=4000, floor=1)
    training.wait_on("spot-a")

    platform.market("spot-a", hosts=0, notice_s=8)
    seen = len(training.starts())
    start = training.wait_on("cloud", since=seen)
    assert start["step"] > 0, "it goes on where it was"
    (first,) = [e for e in node_events(platform, "spot-a").values() if "notice" in e]
    (cloud,) = node_events(platform, "cloud").values()
    assert first["notice"] < cloud["requested"], "on-demand only when the floor needs it"
    wait_for(
        lambda: ((line := training.line()) is not None and line.state == "runs") or None,
        what="the queue to show that it runs",
    )
    ticks = list(read_ticks(fleet.ticks_file))
    assert any("cloud" in grant.pools for tick in ticks for grant in tick.plan.grants.values())
    assert [said(replanned(tick)) for tick in ticks] == [said(tick.plan) for tick in ticks], (
        "what the agent decided follows from what is on record"
    )


@pytest.mark.soak
def test_a_job_comes_back_from_on_demand_without_a_gap(platform, train):
    platform.market("rack", hosts=0, notice_s=0)
    platform.market("spot-a", hosts=0, notice_s=0)
    training = train("migrant", steps=4000, floor=1)
    training.wait_on("cloud")

    platform.market("spot-a")
    training.wait_on("spot-a", since=len(training.starts()))
    back = max(node_events(platform, "spot-a").values(), key=lambda e: e["requested"])

    def left():
        clouds = sorted(node_events(platform, "cloud").values(), key=lambda e: e["requested"])
        return clouds[-1] if "gone" in clouds[-1] else None

    cloud = wait_for(left, what="the on-demand host to go", timeout_s=200)
    assert back["up"] <= cloud["notice"] <= cloud["gone"], "made before broken"
    moves = [d for d in platform.decisions() if d.subject == "migrant" and d.kind == "move"]
    assert any("spot-a instead of 1 host(s)" in move.why for move in moves)
    drains = [d for d in platform.decisions() if d.kind == "drain"]
    assert drains and drains[-1].subject.startswith("cloud-")


@pytest.mark.soak
def test_a_deadline_that_cannot_be_met_takes_on_demand_while_another_job_waits(platform, train):
    platform.market("rack", hosts=0, notice_s=0)
    platform.market("spot-a", hosts=0, notice_s=0)
    urgent = train("urgent", steps=100, deadline="1s", tenant="a")
    patient = train("patient", steps=30, tenant="b")
    urgent.wait_on("cloud")

    def waits():
        line = patient.line()
        return line if line and line.state == "waits" else None

    assert "no domain has room" in wait_for(waits, what="patient to queue", timeout_s=300).why
    assert urgent.job.wait(timeout_s=400) == "SUCCEEDED"
    platform.market("rack")
    patient.wait_on("rack")
    assert patient.job.wait(timeout_s=400) == "SUCCEEDED"
    decisions = platform.decisions()
    (late,) = [d for d in decisions if d.kind == "late" and d.subject == "urgent"][:1]
    assert "min late" in late.why
    assert {s["pool"] for s in urgent.starts()} == {"cloud"}
    (end,) = [d for d in decisions if d.kind == "end" and d.subject == "urgent"]
    assert end.spent_usd > 0


@pytest.mark.soak
def test_a_job_comes_home_when_that_pays_and_gives_its_host_to_who_matters_more(platform, train):
    platform.market("rack", hosts=0, notice_s=0)
    platform.market("spot-a")
    training = train("traveller", steps=6000)
    training.wait_on("spot-a")
    platform.market("rack")
    seen = len(training.starts())
    training.wait_on("rack", since=seen)
    moves = [d.why for d in platform.decisions() if d.subject == "traveller" and d.kind == "move"]
    assert any("home saves" in why for why in moves)
    left = [e for e in node_events(platform, "spot-a").values() if "notice" in e]
    spot = max(left, key=lambda e: e["notice"])
    rack = max(node_events(platform, "rack").values(), key=lambda e: e["requested"])
    assert rack["up"] <= spot["notice"], "made before broken"

    platform.market("spot-a", hosts=0, notice_s=0)
    seen = len(training.starts())
    urgent = train("boss", steps=50, priority=3)
    urgent.wait_on("rack")
    assert urgent.job.wait(timeout_s=400) == "SUCCEEDED"
    assert training.wait_on("rack", since=seen)["step"] > 0, "it goes on when the host is free"
