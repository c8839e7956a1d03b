"""Training on EC2 spot: an outage of all of it, and what a job and a tenant may spend."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator
from typing import Any

import pytest
from cloud_cluster import CloudCluster, cloud_cluster, ec2_pool, lab
from support import wait_for

from rayburst.dev.cloud.box import why_not
from rayburst.dev.cloud.market import ANY
from rayburst.fleet.recorder import replanned, said

pytestmark = [
    pytest.mark.soak,
    pytest.mark.timeout(580),
    pytest.mark.skipif(why_not() is not None, reason=f"no box here: {why_not()}"),
    pytest.mark.skipif(shutil.which("rsync") is None, reason="`ray up` needs rsync"),
]
ZONES = ("us-east-1a", "us-east-1b")
USD_PER_HOUR = 0.36
JOB_USD, TENANT_USD = 0.012, 0.03
TENANTS = f"tenants: [{{name: blue, budget: {TENANT_USD} USD}}]\n"
KINDS = ("requested", "notice", "gone")
FOREVER = "--steps 100000 --workers"
LOG = logging.getLogger(__name__)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CloudCluster]:
    pools = "".join(ec2_pool(zone[-1], zone, price=USD_PER_HOUR) for zone in ZONES)
    with cloud_cluster(tmp_path_factory.mktemp("cloud"), lab(pools + TENANTS)) as cluster:
        yield cluster


@pytest.fixture(autouse=True)
def nothing_is_left(cluster: CloudCluster) -> Iterator[None]:
    """Every test ends with an empty cloud; never too many, and no node counted twice."""
    yield
    cluster.all_given_back()


def steps(cluster: CloudCluster, run: str) -> list[int]:
    """The steps that were done, in the order in which they were, as the first worker tells."""
    log = [record for record in cluster.run_log(run) if record["rank"] == 0]
    return [record["step"] for record in log if record["kind"] == "step"]


def test_training_outlives_an_outage_of_all_of_spot(cluster: CloudCluster) -> None:
    market = cluster.cloud.ec2.market
    with cluster.explained():
        job = cluster.at.train("patient", f"{FOREVER} 2:2")
        wait_for(lambda: len(steps(cluster, "patient")) > 5 or None, what="steps", timeout_s=180)
        assert len(cluster.hosts()) == 2
        for zone in ZONES:
            market.capacity[ANY, zone, "spot"] = 0
        cluster.cloud.trim(10)
        cluster.wait_until_empty()
        done, out_at, asked = steps(cluster, "patient"), time.time(), len(cluster.launches())
        wait_for(
            lambda: len(cluster.launches()) > asked + 2 or None,
            what="a try after a rest",
            timeout_s=120,
        )
        assert cluster.cloud.instances() == []

        market.clear()
        back_at = time.time()
        wait_for(
            lambda: len(steps(cluster, "patient")) > len(done) + 5 or None,
            what="steps again",
            timeout_s=300,
        )
        back = max(event["t"] for event in cluster.at.events() if event["kind"] == "requested")
        LOG.info(
            "%.0f s without hosts; then asked for them after %.1f s",
            back_at - out_at,
            back - back_at,
        )
        cluster.at.asking(f"ray job stop {job}")
    all_done = steps(cluster, "patient")
    LOG.info("%d steps before, %d after", len(done), len(all_done) - len(done))
    assert all_done == list(range(1, len(all_done) + 1)), "none lost, none twice"
    ticks = cluster.ticks()
    assert [said(replanned(tick)) for tick in ticks] == [said(tick.plan) for tick in ticks]


def sent_away(cluster: CloudCluster, count: int, earlier: set[str]) -> list[dict[str, Any]]:
    """The events of new hosts, once so many had notice for a budget and all of them are gone."""

    def probe() -> list[dict[str, Any]] | None:
        events = [event for event in cluster.at.events() if event["node"] not in earlier]
        hosts = {kind: {e["node"] for e in events if e["kind"] == kind} for kind in KINDS}
        all_gone = hosts["requested"] == hosts["gone"]
        return events if all_gone and len(hosts["notice"]) >= count else None

    events = wait_for(probe, what=f"{count} host(s) to be sent away", timeout_s=250)
    cluster.wait_until_empty()
    notices = [event for event in events if event["kind"] == "notice"]
    assert len(notices) == count and all("budget" in notice["why"] for notice in notices)
    return events


def none_came_after(cluster: CloudCluster, events: list[dict[str, Any]]) -> None:
    """No host was asked for once the first had notice."""
    noticed_at = min(event["t"] for event in events if event["kind"] == "notice")
    late = [e for e in cluster.at.events() if e["kind"] == "requested" and e["t"] > noticed_at]
    assert late == [], late


def paid_usd(events: list[dict[str, Any]]) -> float:
    """From the request of each host to its end."""
    at = {(event["node"], event["kind"]): event["t"] for event in events}
    seconds = sum(at[node, "gone"] - t for (node, kind), t in at.items() if kind == "requested")
    return seconds * USD_PER_HOUR / 3600


def stopped_at_a_checkpoint(cluster: CloudCluster, run: str) -> None:
    """Every step that was done is saved, and there was one."""
    done = steps(cluster, run)
    saved = [record["step"] for record in cluster.run_log(run) if record["kind"] == "committed"]
    LOG.info("%s: %d steps, saved at %s", run, len(done), saved)
    assert done and saved and saved[-1] == max(done)


def test_a_job_s_budget_is_held(cluster: CloudCluster) -> None:
    earlier = {event["node"] for event in cluster.at.events()}
    with cluster.explained():
        job = cluster.at.train("thrifty", f"{FOREVER} 1:1", {"budget": f"{JOB_USD} USD"})
        events = sent_away(cluster, 1, earlier)
        LOG.info("paid %.4f of %.4f USD", paid_usd(events), JOB_USD)
        assert 0.5 * JOB_USD < paid_usd(events) <= JOB_USD
        stopped_at_a_checkpoint(cluster, "thrifty")
        cluster.at.asking(f"ray job stop {job}")
        none_came_after(cluster, events)


def test_two_jobs_share_their_tenant_s_budget(cluster: CloudCluster) -> None:
    earlier = {event["node"] for event in cluster.at.events()}
    with cluster.explained():
        runs = ("blue-1", "blue-2")
        jobs = [cluster.at.train(run, f"{FOREVER} 1:1", {"tenant": "blue"}) for run in runs]
        events = sent_away(cluster, 2, earlier)
        LOG.info("paid %.4f of %.4f USD", paid_usd(events), TENANT_USD)
        assert 0.5 * TENANT_USD < paid_usd(events) <= TENANT_USD
        for run in runs:
            stopped_at_a_checkpoint(cluster, run)
        for job in jobs:
            cluster.at.asking(f"ray job stop {job}")
        none_came_after(cluster, events)
