"""A recorded spot market through the whole stack: box, autoscaler v2, agent, provider, training.

Needs ../shared/traces beside the repository, for two zones that were recorded side by side.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cloud_cluster import CloudCluster, cloud_cluster, ec2_pool, lab
from support import wait_for

from rayburst.dev.cloud.box import why_not
from rayburst.dev.cloud.script import from_traces
from rayburst.fleet.recorded import PRIOR
from rayburst.fleet.recorder import replanned, said
from rayburst.fleet.replay.lanes import Jobs, Lanes, Rules
from rayburst.fleet.replay.planned import play_planned
from rayburst.fleet.replay.traces import ZoneTrace, read_traces

TRACES = Path(__file__).resolve().parents[4] / "shared" / "traces" / "zones-2023-02"
pytestmark = [
    pytest.mark.soak,
    pytest.mark.timeout(800),
    pytest.mark.skipif(why_not() is not None, reason=f"no box here: {why_not()}"),
    pytest.mark.skipif(shutil.which("rsync") is None, reason="`ray up` needs rsync"),
    pytest.mark.skipif(
        not TRACES.is_dir(),
        reason=f"no recorded spot traces at {TRACES}; its README says where they come from",
    ),
]
A, B = "us-east-1a", "us-east-1b"
RECORDED = ("us-east-1f_v100_1", "us-east-2a_v100_1")
FIRST, TICKS = 7112, 110
"""Of these ticks the first zone has 13, then only the second 17, then none 5, then the first."""
TICK_S = 5.0
"""Real seconds for one of the recording's 195: a join and a first step must fit into 17 of them."""
NOTICE_S = 6.0
PRICE = 0.36
LOST = 2
AT_LAST_S = 30.0
"""How long the job trains after it was lost so often; it is stopped then, whatever its speed."""
LOG = logging.getLogger(__name__)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CloudCluster]:
    pools = "".join(ec2_pool(name, zone, price=PRICE) for name, zone in (("a", A), ("b", B)))
    folder = tmp_path_factory.mktemp("cloud")
    with cloud_cluster(folder, lab(pools, join="120s")) as cluster:
        yield cluster


@dataclass(frozen=True, kw_only=True)
class Stay:
    """The job on one host: unix seconds. It was paid for from `asked` to `gone`."""

    node: str
    asked: float
    first_step: float
    last_step: float
    gone: float


def stays(events: Sequence[dict[str, Any]], log: Sequence[dict[str, Any]]) -> list[Stay]:
    """What the node events and the steps of the one worker come to, host by host."""
    at = {(event["node"], event["kind"]): event["t"] for event in events}
    steps = [record["t"] for record in log if record["kind"] == "step"]
    found = []
    for (node, kind), asked in at.items():
        if kind == "requested":
            up, gone = at[node, "up"], at[node, "gone"]
            mine = [t for t in steps if up < t <= gone]
            assert mine, f"{node} did no step in {gone - asked:.0f} s: too busy here for {TICK_S=}"
            found.append(
                Stay(node=node, asked=asked, first_step=mine[0], last_step=mine[-1], gone=gone)
            )
    return sorted(found, key=lambda stay: stay.asked)


def market() -> list[ZoneTrace]:
    """The two zones as recorded, named as the pools are."""
    found = []
    for name, file in zip("ab", RECORDED, strict=True):
        (zone,) = read_traces(TRACES / f"{file}.json")
        count = zone.count[FIRST : FIRST + TICKS]
        found.append(ZoneTrace(trace_set="", name=name, tick_s=zone.tick_s, count=count))
    return found


def simulated(*, before_s: float, work_s: float, changeover_s: float) -> Lanes:
    """The same job on the same market by `rayburst simulate`'s replay, a reading every second.

    Until the recording begins both zones are up. A host that is taken stays until its notice is
    over.
    """
    traces = []
    for zone in market():
        up = np.r_[np.ones(round(before_s), bool), np.repeat(zone.count > 0, round(TICK_S))]
        late = [np.r_[np.zeros(s, bool), up[: len(up) - s]] for s in range(round(NOTICE_S) + 1)]
        count = np.any(late, axis=0).astype(np.int64)
        traces.append(ZoneTrace(trace_set="", name=zone.name, tick_s=1.0, count=count))
    rules = Rules(work_s=work_s, changeover_s=changeover_s, price_ratio=3.0, tick_s=1.0)
    jobs = Jobs(start=np.array([0]), allowed_s=np.array([np.inf]))
    return play_planned(traces, nodes=1, jobs=jobs, rules=rules, prior=PRIOR)


def test_a_recorded_market_is_planned_and_paid_for_as_the_simulation_says(
    cluster: CloudCluster,
) -> None:
    steps = from_traces(market(), zones=(A, B), hosts=1, notice_s=NOTICE_S)
    with cluster.explained():
        job = cluster.at.train("traced", "--workers 1:1 --steps 100000")
        said_on_head = f"cat /tmp/ray/session_latest/logs/job-driver-{job}.log || true"
        wait_for(
            lambda: "training with 1 worker" in cluster.at.on("head", said_on_head) or None,
            what="the first step",
            timeout_s=180,
        )
        began = time.time()
        cluster.cloud.play(steps, speed=market()[0].tick_s / TICK_S)
        last_up = wait_for(lambda: hosts_up(cluster, LOST + 1), what="all hosts", timeout_s=400)
        wait_for(
            lambda: trained_since(cluster, last_up) >= AT_LAST_S or None,
            what="training on the last host",
            timeout_s=200,
        )
        cluster.at.asking(f"ray job stop {job}")
        cluster.wait_until_empty(timeout_s=90)
        events = wait_for(
            lambda: found if all_ended(found := cluster.at.events()) else None,
            what="the ends of all hosts on record",
        )
    hosts = stays(events, cluster.run_log("traced"))
    for stay in hosts:
        told = f"{stay.node}: asked for at {stay.asked - began:.1f} s, its first step after "
        told += f"{stay.first_step - stay.asked:.1f} s, its last {stay.gone - stay.last_step:.1f}"
        LOG.info("%s s before it was gone at %.1f s", told, stay.gone - began)
    taken = [event["node"] for event in events if event["kind"] == "notice"]
    assert len([node for node in taken if node != hosts[-1].node]) == LOST, "the market took hosts"

    ticks = cluster.ticks()
    assert len(ticks) > 10
    assert [said(replanned(tick)) for tick in ticks] == [said(tick.plan) for tick in ticks]

    work_s = sum(stay.last_step - stay.first_step for stay in hosts)
    changeover_s = float(np.mean([stay.first_step - stay.asked for stay in hosts]))
    paid_s = sum(stay.gone - stay.asked for stay in hosts)
    lanes = simulated(before_s=began - hosts[0].asked, work_s=work_s, changeover_s=changeover_s)
    would_s = lanes.cost[0] + ticks[-1].view.idle_timeout_s  # the last host is idle before it goes
    told = f"{work_s:.1f} s of work, {changeover_s:.1f} s from a request to a step; paid for "
    told += f"{paid_s:.1f} s of {len(hosts)} hosts, simulated {would_s:.1f} s of "
    told += f"{lanes.starts[0]}: {paid_s / would_s - 1:+.1%}"
    LOG.info("%s", told)
    assert len(hosts) == lanes.starts[0], told
    assert paid_s == pytest.approx(would_s, rel=0.1), told
    assert max(cluster.peak.values()) <= 2, cluster.peak


def hosts_up(cluster: CloudCluster, count: int) -> float | None:
    """When the host of that number had joined; None before."""
    joined = [event["t"] for event in cluster.at.events() if event["kind"] == "up"]
    return joined[count - 1] if len(joined) >= count else None


def trained_since(cluster: CloudCluster, t: float) -> float:
    """Seconds from the first to the newest step after `t`."""
    steps = [r["t"] for r in cluster.run_log("traced") if r["kind"] == "step" and r["t"] > t]
    return steps[-1] - steps[0] if steps else 0.0


def all_ended(events: list[dict[str, Any]]) -> bool:
    """Whether each host that was requested has ended."""
    nodes = {
        kind: {e["node"] for e in events if e["kind"] == kind} for kind in ("requested", "gone")
    }
    return nodes["requested"] == nodes["gone"]
