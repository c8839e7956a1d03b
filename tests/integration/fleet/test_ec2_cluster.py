"""EC2 instances join a cluster of `ray up`, are warned over IMDS, replaced and given back."""

from __future__ import annotations

import logging
import re
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from cloud_cluster import ACTORS, CloudCluster, ec2_pool
from support import wait_for

from rayburst.dev.cloud.box import why_not
from rayburst.dev.cloud.cloud import Cloud, Instance
from rayburst.dev.cloud.market import ANY
from rayburst.fleet.pools.base import pool_of

pytestmark = [
    pytest.mark.timeout(400),
    pytest.mark.skipif(why_not() is not None, reason=f"no box here: {why_not()}"),
    pytest.mark.skipif(shutil.which("rsync") is None, reason="`ray up` needs rsync"),
]
A, B = "us-east-1a", "us-east-1b"
JOIN_S = 60
TICK_S = 1.0
LOG = logging.getLogger(__name__)
SPOT = "ray.io/market-type=spot"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CloudCluster]:
    shared = Path(tempfile.mkdtemp(dir="/var/tmp"))  # hosts have a /tmp of their own
    try:
        with Cloud(tmp_path_factory.mktemp("cloud"), zones=2) as cloud:
            pools = ec2_pool(cloud, "spot-a", A, price=0.03) + ec2_pool(
                cloud, "spot-b", B, price=0.04
            )
            cluster = CloudCluster(cloud, pools, shared, join=f"{JOIN_S}s")
            yield cluster
            cluster.down()
    finally:
        shutil.rmtree(shared)


@pytest.fixture(autouse=True)
def nothing_is_left(cluster: CloudCluster) -> Iterator[None]:
    """Every test begins with an empty cloud and an open market, and ends so; never too many."""
    cluster.cloud.ec2.market.clear()
    yield
    cluster.release_all()
    with cluster.explained():
        cluster.wait_until_empty(timeout_s=90)
        wait_for(lambda: all_ended(cluster) or None, what="each node's one end in the event log")
    assert all(most <= 2 for most in cluster.peak.values()), cluster.peak


def all_ended(cluster: CloudCluster) -> bool:
    """Whether each node was requested once and ended once, by the event log."""
    kinds = Counter((event["node"], event["kind"]) for event in cluster.events())
    assert not [one for one, count in kinds.items() if count > 1], "no node counts twice"
    nodes = {node for node, _ in kinds}
    return all((node, "requested") in kinds and (node, "gone") in kinds for node in nodes)


def test_training_fills_the_rack_bursts_is_warned_and_goes_on(cluster: CloudCluster) -> None:
    """The short form of `test_hybrid_cluster.py`."""
    cluster.cloud.ec2.market.capacity[ANY, A, "spot"] = 0
    run, since = f"run-{len(cluster.at.jobs)}", time.time()
    with cluster.explained():
        job = cluster.at.train(run, "--workers 1:2 --steps 9000", {"span": "any"})
        try:
            spot = bursts(cluster, job, since=since)
            shrinks(cluster, job, spot)
            listed = cluster.at.on_head(f"rayburst checkpoints ls $RAYBURST_STORE/runs/{run}")
            assert re.search(r": [1-9]\d* checkpoint", " ".join(listed.split())), listed
        finally:
            cluster.at.asking(f"ray job stop {job}")


def bursts(cluster: CloudCluster, job: str, *, since: float) -> str:
    """Machines of one's own first, then the pool of spot that has some; the spot host."""
    trains_with(cluster, job, 2)
    asked = [e for e in cluster.events() if e["kind"] == "requested" and e["t"] >= since]
    assert [e["pool"] for e in sorted(asked, key=lambda e: e["t"])] == ["rack", "spot-b"]
    refused, got = [one for one in cluster.cloud.ec2.launches if one.at >= since]
    assert (refused.zone, refused.got, got.zone, got.got) == (A, 0, B, 1), "asked once each"
    LOG.info("the next pool was asked %.2f s after a refusal", got.at - refused.at)
    assert got.at - refused.at <= 2 * TICK_S
    return next(e["node"] for e in asked if e["pool"] == "spot-b")


def shrinks(cluster: CloudCluster, job: str, spot: str) -> None:
    """Spot is warned, drained and taken, there is no other, and training goes on without it."""
    cloud = cluster.cloud
    cloud.ec2.market.capacity[ANY, B, "spot"] = 0
    given_at = time.time()
    deadline = cloud.interrupt(cluster.hosts()[spot].id, notice_s=25)
    log = trains_with(cluster, job, 1)
    assert re.search(r"training with 1 worker from step \d+ after .* without a step", log)
    assert "steps again" not in log, "it had notice and lost no step"
    told = {event["kind"]: event for event in cluster.events() if event["node"] == spot}
    noticed, drained = told["notice"], told["draining"]
    LOG.info("the notice was drained after %.2f s", drained["t"] - given_at)
    assert drained["t"] - given_at <= 2
    assert abs(noticed["deadline"] - deadline) <= 1, "EC2 tells whole seconds"


def trains_with(cluster: CloudCluster, job: str, workers: int) -> str:
    """Wait until a job has told of a step with so many workers; its log."""

    def told() -> str | None:
        log = cluster.at.log_of(job)
        return log if f"world {workers}" in log else None

    return wait_for(told, what=f"{job} to train with {workers}", timeout_s=180)


@pytest.mark.soak
def test_two_notices_at_once(cluster: CloudCluster) -> None:
    with cluster.explained():
        cluster.work("two", 2, SPOT)
        before = cluster.joined("two", 2)
        for instance in cluster.cloud.instances():
            cluster.cloud.interrupt(instance.id, notice_s=20)
        after = cluster.joined("two", 2, apart_from=before)
        cluster.release("two")
        said = cluster.ended("two")
        assert all(host in said for host in after)


@pytest.mark.soak
def test_notice_to_a_node_that_is_still_starting(cluster: CloudCluster) -> None:
    warned: dict[str, Instance] = {}

    def warn() -> None:
        warned.update(cluster.hosts())
        for instance in warned.values():
            cluster.cloud.interrupt(instance.id, notice_s=8)

    cluster.on_next_launch(warn)
    with cluster.explained():
        cluster.work("early", 1, SPOT)
        hosts = cluster.joined("early", 1, apart_from=warned.keys())
        assert [one.pid for one in warned.values()] == [None], "it was starting"
        cluster.release("early")
        assert hosts.pop() in cluster.ended("early")


@pytest.mark.soak
def test_a_recommendation_to_rebalance_is_heeded(cluster: CloudCluster) -> None:
    with cluster.explained():
        cluster.work("moved", 1, SPOT)
        before = cluster.joined("moved", 1)
        (instance,) = cluster.cloud.instances()
        cluster.cloud.recommend_rebalance(instance.id)
        after = cluster.joined("moved", 1, apart_from=before)
        gone = wait_for(lambda: cluster.event("gone", next(iter(before))), what="its end")
        assert gone["why"] == "given back: EC2 recommends to rebalance"
        cluster.release("moved")
        assert after.pop() in cluster.ended("moved")


@pytest.mark.soak
def test_a_host_that_never_joins_closes_its_pool_and_is_ended(cluster: CloudCluster) -> None:
    cluster.cloud.boots_fail = 1
    with cluster.explained():
        cluster.work("never", 1, SPOT)
        (first,) = wait_for(lambda: cluster.hosts() or None, what="a launch")
        (host,) = cluster.joined("never", 1, timeout_s=150)
        assert pool_of(host) != pool_of(first), "the pool is closed for a while"
        gone = wait_for(lambda: cluster.event("gone", first), what="its end")
        assert gone["why"] == f"it did not join within {JOIN_S} s"


@pytest.mark.soak
def test_a_machine_on_prem_that_hangs_is_lost_and_its_work_goes_on_in_the_cloud(
    cluster: CloudCluster,
) -> None:
    at = cluster.at
    with cluster.explained():
        cluster.work("hung", 1, script=ACTORS)
        (rack,) = cluster.joined("hung", 1)
        assert pool_of(rack) == "rack"
        with hanging(cluster, "rack-1"):
            (host,) = cluster.joined("hung", 1, apart_from={rack}, timeout_s=150)
            assert pool_of(host) == "spot-a", "a machine that hangs is not asked again"
            gone = wait_for(lambda: cluster.event("gone", rack), what="the end of the first")
            assert gone["why"].startswith("lost: "), gone
        cluster.release("hung")
        assert host in cluster.ended("hung")
        wait_for(
            lambda: ("lease.json" not in at.on("rack-1", "ls -A ~/.rayburst")) or None,
            what="the machine to be given back once it answers",
        )
        assert at.processes_on("rack-1") == []


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


@pytest.mark.soak
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


@pytest.mark.soak
def test_a_machine_that_vanishes_is_replaced(cluster: CloudCluster) -> None:
    with cluster.explained():
        cluster.work("vanished", 1, SPOT, script=ACTORS)
        before = cluster.joined("vanished", 1)
        (instance,) = cluster.cloud.instances()
        cut_at = time.time()
        cluster.cloud.interrupt(instance.id, notice_s=0)
        after = cluster.joined("vanished", 1, apart_from=before)
        LOG.info("a vanished machine was replaced after %.1f s", time.time() - cut_at)
        kinds = {event["kind"] for event in cluster.events() if event["node"] in before}
        assert kinds == {"requested", "up", "gone"}, "it had no notice"
        cluster.release("vanished")
        assert after.pop() in cluster.ended("vanished")


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
