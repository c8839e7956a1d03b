"""EC2 instances join a real Ray cluster, are warned over IMDS, replaced and given back."""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from cloud_cluster import ACTORS, CloudCluster, ec2_pool
from support import wait_for

from rayburst.dev.cloud.box import why_not
from rayburst.dev.cloud.cloud import Cloud, Instance
from rayburst.dev.cloud.market import ANY
from rayburst.fleet.pools.base import pool_of
from rayburst.fleet.pools.ec2_instances import host_id

pytestmark = [
    pytest.mark.timeout(400),
    pytest.mark.skipif(why_not() is not None, reason=f"no box here: {why_not()}"),
]
A, B = "us-east-1a", "us-east-1b"
JOIN_S = 40
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
            yield CloudCluster(cloud, pools, shared, join=f"{JOIN_S}s")
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


def test_a_cloud_bursts_is_warned_moves_on_and_is_given_back(cluster: CloudCluster) -> None:
    with cluster.explained():
        burst(cluster)


def burst(cluster: CloudCluster) -> None:
    cloud = cluster.cloud
    cloud.ec2.market.capacity[ANY, A, "spot"] = 0
    earlier = len(cluster.launches())
    cluster.work("one", 1, SPOT)

    (first,) = cluster.joined("one", 1)
    (instance,) = cloud.instances()
    assert host_id("spot-b", instance.id) == first, "where there was capacity"
    asked = cluster.launches()[earlier:]
    assert len(asked) == 2, "the pool without capacity was asked once, then the next"
    LOG.info("the next pool was asked %.2f s after a refusal", asked[1] - asked[0])

    cloud.ec2.market.capacity[ANY, A, "spot"] = 2
    given_at = time.time()
    deadline = cloud.interrupt(instance.id, notice_s=25)
    drained = wait_for(lambda: cluster.event("draining", first), what="the drain", timeout_s=30)
    noticed = cluster.event("notice", first)
    assert noticed is not None
    seen, drain = noticed["t"] - given_at, drained["t"] - given_at
    LOG.info("the notice was seen after %.2f s and drained after %.2f s", seen, drain)
    assert abs(noticed["deadline"] - deadline) <= 1, "EC2 tells whole seconds"
    assert drained["t"] - given_at <= 2

    (second,) = cluster.joined("one", 1, apart_from={first})
    gone = wait_for(lambda: cluster.event("gone", first), what="the end of the first")
    assert gone["why"].startswith("taken: EC2")
    cluster.release("one")
    assert second in cluster.ended("one")


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
        (host,) = cluster.joined("never", 1)
        assert pool_of(host) != pool_of(first), "the pool is closed for a while"
        gone = wait_for(lambda: cluster.event("gone", first), what="its end")
        assert gone["why"] == f"it did not join within {JOIN_S} s"


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
