"""`cluster_configs/hybrid-aws.yaml` as it stands: a rack, EC2 spot and on-demand, and their faults.

One cluster of `ray up`. Every test begins and ends with an empty cloud and an open market.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from box_cluster import BoxCluster, replaced
from cloud_cluster import ACTORS, CloudCluster, cloud_cluster
from support import wait_for

from rayburst.dev.cloud.box import why_not
from rayburst.dev.cloud.cloud import Cloud, Instance
from rayburst.dev.cloud.market import ANY
from rayburst.fleet.pools.base import pool_of

pytestmark = [
    pytest.mark.timeout(500),
    pytest.mark.skipif(why_not() is not None, reason=f"no box here: {why_not()}"),
    pytest.mark.skipif(shutil.which("rsync") is None, reason="`ray up` needs rsync"),
]
FILE = Path(__file__).parents[3] / "cluster_configs" / "hybrid-aws.yaml"
STEADY = Path(__file__).with_name("steady.py")
A, B = "us-east-1a", "us-east-1b"
TICK_S = 1.0
JOIN_S = 60
BUDGET_USD = 0.2
SPOT = "ray.io/market-type=spot"
LOG = logging.getLogger(__name__)


def for_the_box(cloud: Cloud, at: BoxCluster) -> str:
    """The fleet file with the box's addresses, short times and machines of one CPU."""
    ours = {
        "s3://my-bucket/hybrid": f"s3://fleet/hybrid, endpoint: '{at.store.endpoint}'",
        "monthly_budget: 500 USD": f"monthly_budget: {BUDGET_USD} USD",
        "idle_timeout: 2m": "idle_timeout: 4s",
        "drain: 60s": "drain: 10s",
        "join: 20m": f"join: {JOIN_S}s",
        "10.0.0.6": at.hosts["head"].address,
        "10.0.0.7, 10.0.0.8": at.hosts["rack-1"].address,
        "{min: 0, max: 2}": "{max: 1}",
        "{max: 8}": "{max: 2}",
        "user: ray": "user: root",
        "{cpus: 4, memory: 16GiB}": "{cpus: 1, memory: 1GiB}",
        "ami-0123456789abcdef0": cloud.ami,
        "subnet-0aaa1111": cloud.subnets[A],
        "subnet-0bbb2222": cloud.subnets[B],
        "security_groups: [sg-0123abcd]": f"endpoint: '{cloud.endpoint}'\n      rebalance: 10s",
        "      profile: rayburst-node\n": "",
    }
    return replaced(FILE.read_text(), ours) + f"software: {{python: {sys.executable}}}\n"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CloudCluster]:
    folder = tmp_path_factory.mktemp("cloud")
    with cloud_cluster(folder, for_the_box, fleet="hybrid-aws", racks=1) as cluster:
        yield cluster


@pytest.fixture(autouse=True)
def nothing_is_left(cluster: CloudCluster) -> Iterator[None]:
    cluster.cloud.ec2.market.clear()
    yield
    cluster.release_all()
    cluster.all_given_back()
    assert cluster.at.processes_on("rack-1") == []
    told = cluster.at.on_head("rayburst cost hybrid-aws --json")
    spent = json.loads(told[told.index("{") :])
    assert 0 < spent["usd"] <= BUDGET_USD


def test_the_rack_fills_spot_bursts_on_demand_steps_in_and_the_cloud_is_left_empty(
    cluster: CloudCluster,
) -> None:
    market, run = cluster.cloud.ec2.market, f"run-{len(cluster.at.jobs)}"
    market.capacity[ANY, A, "spot"] = 0
    with cluster.explained(), cluster.at.stopping_jobs():
        since = time.time()
        patient = cluster.at.train(run, "--workers 1:2 --steps 100000", {"span": "any"})
        trains_with(cluster, patient, 2)
        spot = next_pool_was_asked_soon(cluster, since)

        market.capacity[ANY, B, "spot"] = 0
        noticed_at = time.time()
        deadline = cluster.cloud.interrupt(cluster.hosts()[spot].id, notice_s=25)
        urgent = submit_steady(cluster)
        log = trains_with(cluster, patient, 1)
        assert re.search(r"training with 1 worker from step \d+ after .* without a step", log)
        was_drained_soon(cluster, spot, noticed_at, deadline)
        wait_for(lambda: "cloud" in pools_of(cluster, urgent) or None, what="on-demand")
        (cloudy,) = by_pool(cluster, since)["cloud"]
        assert "gone" not in cloudy, "a deadline needs it, and there is no spot"

        market.clear()
        hosts = wait_for(lambda: gone(cluster, since, "cloud"), what="on-demand to go")
        (cloudy,) = hosts["cloud"]
        spots = hosts.get("spot-a", []) + hosts["spot-b"]
        up_at = [one["up"]["t"] for one in spots if "up" in one]
        assert any(cloudy["up"]["t"] < at <= cloudy["notice"]["t"] for at in up_at), "made first"
        wait_for(
            lambda: pools_of(cluster, urgent)[-1].startswith("spot-") or None,
            what="it to go on there",
        )
        later = cluster.at.log_of(patient)
        assert len(later) > len(log) and "steps again" not in later, "no step was lost"
        listed = cluster.at.on_head(f"rayburst checkpoints ls $RAYBURST_STORE/runs/{run}")
        assert re.search(r": [1-9]\d* checkpoint", " ".join(listed.split())), listed


def trains_with(cluster: CloudCluster, job: str, workers: int) -> str:
    """Wait until a job has told of a step with so many workers; its log."""

    def told() -> str | None:
        log = cluster.at.log_of(job)
        return log if f"world {workers}" in log else None

    return wait_for(told, what=f"{job} to train with {workers}", timeout_s=180)


Events = dict[str, dict[str, Any]]
"""Of one host, by kind."""


def by_pool(cluster: CloudCluster, since: float) -> dict[str, list[Events]]:
    """The hosts of each pool that were asked for from then on, the oldest first."""
    found: dict[str, Events] = {}
    for event in sorted(cluster.at.events(), key=lambda event: event["t"]):
        found.setdefault(event["node"], {})[event["kind"]] = event
    pools: dict[str, list[Events]] = {}
    for host in found.values():
        if host["requested"]["t"] >= since:
            pools.setdefault(host["requested"]["pool"], []).append(host)
    return pools


def next_pool_was_asked_soon(cluster: CloudCluster, since: float) -> str:
    """Machines of one's own first, then each zone once: the one without capacity, then the other.

    Returns the spot host.
    """
    hosts = by_pool(cluster, since)
    assert hosts.keys() == {"rack", "spot-b"}, "spot-a is empty, nobody asked for on-demand"
    (rack,), (spot,) = hosts["rack"], hosts["spot-b"]
    assert rack["requested"]["t"] <= spot["requested"]["t"]
    refused, got = [one for one in cluster.cloud.ec2.launches if one.at >= since]
    assert (refused.zone, refused.got, got.zone, got.got) == (A, 0, B, 1)
    LOG.info("the next pool was asked %.2f s after a refusal", got.at - refused.at)
    assert got.at - refused.at <= 2 * TICK_S
    return str(spot["requested"]["node"])


def was_drained_soon(cluster: CloudCluster, node: str, noticed_at: float, deadline: float) -> None:
    told = {event["kind"]: event for event in cluster.at.events() if event["node"] == node}
    took_s = told["draining"]["t"] - noticed_at
    LOG.info("the notice was drained after %.2f s", took_s)
    assert took_s <= 2
    assert abs(told["notice"]["deadline"] - deadline) <= 1, "EC2 tells whole seconds"


def submit_steady(cluster: CloudCluster) -> str:
    """A job whose speed no other work on this machine changes, and that must be done in time.

    So near that it keeps on-demand while there is no spot, so far that it leaves it for spot.
    """
    cluster.at.put("laptop", "~/steady/steady.py", STEADY.read_text())
    job = f"steady-{len(cluster.at.jobs)}"
    words = f"--run {job} --storage {cluster.shared} --steps 2000 --step-s 0.2"
    terms = {"span": "any", "deadline": "13m"}
    return cluster.at.submit("steady", f"python steady.py {words}", terms, job=job)


def pools_of(cluster: CloudCluster, job: str) -> list[str]:
    """The pools in which groups of the steady job have started."""
    file = cluster.shared / job / "starts"
    told = file.read_text().splitlines() if file.exists() else []
    return [json.loads(line)["pool"] for line in told]


def gone(cluster: CloudCluster, since: float, pool: str) -> dict[str, list[Events]] | None:
    """The hosts of all pools, once the one that a pool had is gone."""
    hosts = by_pool(cluster, since)
    (one,) = hosts[pool]
    return hosts if "gone" in one else None


def test_the_autoscaler_is_killed_in_the_middle_of_a_launch(cluster: CloudCluster) -> None:
    monitor = cluster.monitor()
    assert monitor is not None
    launched = cluster.on_next_launch(monitor.kill)
    with cluster.explained():
        cluster.work("killed", 1, SPOT)
        (host,) = cluster.joined("killed", 1)
        assert launched.is_set() and not monitor.is_running()
        assert list(cluster.hosts()) == [host], "launched once, and found again"
        cluster.release("killed")
        cluster.ended("killed")


def test_two_notices_at_once_and_then_to_a_node_that_is_starting(cluster: CloudCluster) -> None:
    early: dict[str, Instance] = {}
    with cluster.explained():
        cluster.work("warned", 2, SPOT)
        before = cluster.joined("warned", 2)

        def warn() -> None:
            early.update({k: v for k, v in cluster.hosts().items() if k not in before})
            for instance in early.values():
                cluster.cloud.interrupt(instance.id, notice_s=8)

        cluster.on_next_launch(warn)
        for instance in cluster.cloud.instances():
            cluster.cloud.interrupt(instance.id, notice_s=6)
        wait_for(lambda: early or None, what="the launch of others")
        after = cluster.joined("warned", 2, apart_from=before | early.keys())
        assert early and all(one.pid is None for one in early.values()), "it was starting"
        for host in (*before, *early):
            wait_for(lambda host=host: cluster.at.event("gone", host), what=f"the end of {host}")
        cluster.release("warned")
        said = cluster.ended("warned")
        assert all(host in said for host in after)


def test_a_machine_hangs_while_an_instance_never_joins(cluster: CloudCluster) -> None:
    at = cluster.at
    with cluster.explained():
        cluster.work("hung", 1, script=ACTORS)
        (rack,) = cluster.joined("hung", 1)
        assert pool_of(rack) == "rack"
        with hanging(cluster, "rack-1"):
            cluster.cloud.boots_fail = 1
            cluster.work("never", 1, SPOT)
            (silent,) = wait_for(lambda: cluster.hosts() or None, what="a launch")
            moved = cluster.joined("hung", 1, apart_from={rack}, timeout_s=150)
            other = cluster.joined("never", 1, timeout_s=150)
            pools = {pool_of(host) for host in moved | other}
            assert pools <= {"spot-a", "spot-b"}, "a machine that hangs is not asked again"
            assert pools - {pool_of(silent)}, "where none joined is closed for a while"
            ends = {node: at.event("gone", node) for node in (rack, silent)}
            assert ends[rack]["why"].startswith("lost: "), ends
            assert ends[silent]["why"] == f"it did not join within {JOIN_S} s"
        for name, hosts in {"hung": moved, "never": other}.items():
            cluster.release(name)
            assert hosts.pop() in cluster.ended(name)
        wait_for(
            lambda: ("lease.json" not in at.on("rack-1", "ls -A ~/.rayburst")) or None,
            what="the machine to be given back once it answers",
        )


@contextmanager
def hanging(cluster: CloudCluster, host: str) -> Iterator[None]:
    """All processes of a machine stand still, its sshd too; what connects gets no answer."""
    first = psutil.Process(cluster.cloud.box.pid(host))
    stopped = first.children(recursive=True)
    for process in stopped:
        process.suspend()
    try:
        yield
    finally:
        for process in stopped:
            with suppress(psutil.NoSuchProcess):
                process.resume()


def test_an_api_that_throttles_and_fails_is_borne(cluster: CloudCluster) -> None:
    ec2 = cluster.cloud.ec2
    with cluster.explained():
        ec2.fail("CreateFleet", code="RequestLimitExceeded", times=4)
        ec2.fail("CreateTags", code="InternalError", status=500, times=2)
        cluster.work("throttled", 1, SPOT)
        cluster.joined("throttled", 1)
        met(cluster, "CreateFleet", "CreateTags")
        ec2.fail("DescribeInstances", code="InternalError", status=500, times=12)
        ec2.fail("TerminateInstances", code="RequestLimitExceeded", times=3)
        cluster.release("throttled")
        cluster.ended("throttled")
        cluster.wait_until_empty(timeout_s=120)
        met(cluster, "DescribeInstances", "TerminateInstances")


def met(cluster: CloudCluster, *actions: str) -> None:
    """Wait until all scripted refusals of these calls have been met."""
    ec2 = cluster.cloud.ec2
    wait_for(lambda: not any(map(ec2.failures, actions)) or None, what=f"all refusals of {actions}")


@pytest.mark.soak
def test_a_recommendation_to_rebalance_is_heeded(cluster: CloudCluster) -> None:
    with cluster.explained():
        cluster.work("moved", 1, SPOT)
        before = cluster.joined("moved", 1)
        (instance,) = cluster.cloud.instances()
        cluster.cloud.recommend_rebalance(instance.id)
        after = cluster.joined("moved", 1, apart_from=before)
        gone = wait_for(lambda: cluster.at.event("gone", next(iter(before))), what="its end")
        assert gone["why"] == "given back: EC2 recommends to rebalance"
        cluster.release("moved")
        assert after.pop() in cluster.ended("moved")


@pytest.mark.soak
def test_a_machine_that_vanishes_is_replaced(cluster: CloudCluster) -> None:
    with cluster.explained():
        cluster.work("vanished", 1, SPOT, script=ACTORS)
        before = cluster.joined("vanished", 1)
        (node,) = before
        wait_for(lambda: cluster.at.event("up", node), what="its beginning on record")
        (instance,) = cluster.cloud.instances()
        cut_at = time.time()
        cluster.cloud.interrupt(instance.id, notice_s=0)
        after = cluster.joined("vanished", 1, apart_from=before)
        LOG.info("a vanished machine was replaced after %.1f s", time.time() - cut_at)
        wait_for(lambda: cluster.at.event("gone", node), what="its end on record")
        assert cluster.at.event("notice", node) is None
        cluster.release("vanished")
        assert after.pop() in cluster.ended("vanished")
