"""From pools and Ray to the planner's view and to events."""

from __future__ import annotations

from dataclasses import replace

from rayburst.fleet._ray_hooks import RayNode, RayNodeStatus, RayView
from rayburst.fleet.failures import Failures
from rayburst.fleet.observer import (
    DRAINING_TAG,
    UP_TAG,
    events_of,
    fleet_view,
    new_tags,
)
from rayburst.fleet.pools.base import Host, Notice
from rayburst.fleet.spec import FleetSpec
from rayburst.fleet.view import NodeState

SPEC = FleetSpec.parse(
    """
name: test
object_store: {kind: embedded}
pools:
  - name: spot-a
    kind: process
    market: spot
    shape: {cpus: 1, memory: 2GiB}
    price: 0.92 USD/h
    hosts: {max: 4}
"""
)


def host(name: str, **facts) -> Host:
    return Host(
        id=name,
        pool="spot-a",
        address="127.1.1.2",
        requested_at=100.0,
        price_usd_per_hour=0.92,
        why="pending work",
        **facts,
    )


def ray_node(name: str, status: RayNodeStatus, idle_s: float = 0.0) -> RayNode:
    return RayNode(
        node_id="ab",
        host=name,
        status=status,
        address="127.1.1.2",
        total={"CPU": 1.0},
        available={"CPU": 1.0 if idle_s else 0.0},
        idle_s=idle_s,
    )


def states(hosts, nodes) -> dict[str, NodeState]:
    seen = fleet_view(SPEC, hosts, RayView(nodes=tuple(nodes), requests=()), {}, now=200.0)
    return {node.host: node.state for node in seen.nodes}


def test_states_of_nodes():
    notice = Notice(given_at=150.0, deadline=180.0, why="reclaim")
    hosts = [
        host("spot-a-0001"),
        host("spot-a-0002"),
        host("spot-a-0003", notice=notice),
        host("spot-a-0004", gone_at=150.0, gone_why="taken"),
        host("spot-a-0005"),
    ]
    nodes = [
        ray_node("spot-a-0002", RayNodeStatus.RUNNING),
        ray_node("spot-a-0003", RayNodeStatus.RUNNING),
        ray_node("spot-a-0005", RayNodeStatus.DRAINING),
        ray_node("spot-a-0001", RayNodeStatus.DEAD),
    ]
    assert states(hosts, nodes) == {
        "spot-a-0001": NodeState.LAUNCHING,
        "spot-a-0002": NodeState.RUNNING,
        "spot-a-0003": NodeState.DRAINING,
        "spot-a-0005": NodeState.DRAINING,
    }


def test_only_an_idle_node_has_idle_time():
    nodes = [
        ray_node("spot-a-0001", RayNodeStatus.IDLE, idle_s=30),
        ray_node("spot-a-0002", RayNodeStatus.RUNNING, idle_s=30),
    ]
    hosts = [host("spot-a-0001"), host("spot-a-0002")]
    seen = fleet_view(SPEC, hosts, RayView(nodes=tuple(nodes), requests=()), {}, 9)
    assert [node.idle_s for node in seen.nodes] == [30, 0]


def test_a_host_that_never_joined_counts_as_a_failed_launch():
    stillborn = host("spot-a-0001", gone_at=150.0, gone_why="its Ray node did not start")
    lived = host("spot-a-0002", tags={UP_TAG: "120.000"}, gone_at=160.0, gone_why="taken")
    seen = fleet_view(SPEC, [stillborn, lived], RayView(nodes=(), requests=()), {}, now=170.0)
    assert seen.pools[0].failures == [150.0]
    assert "did not start" in seen.pools[0].failed_why


def test_failures_on_file_and_of_hosts_count_until_a_host_that_was_asked_for_later_joins():
    stillborn = host("spot-a-0001", gone_at=150.0, gone_why="its Ray node did not start")
    failed = {"spot-a": Failures(at=(90.0, 160.0), why="no capacity")}

    def failures(*hosts: Host) -> tuple[list[float], str]:
        ray = RayView(nodes=(), requests=())
        (pool,) = fleet_view(SPEC, hosts, ray, failed, now=170.0).pools
        return list(pool.failures), pool.failed_why

    assert failures(stillborn) == ([90.0, 150.0, 160.0], "no capacity")
    asked_before = host("spot-a-0002", tags={UP_TAG: "165.0"})  # for at 100
    assert failures(stillborn, asked_before) == ([150.0, 160.0], "no capacity")
    later = replace(asked_before, requested_at=161.0)
    assert failures(stillborn, later) == ([], "")


def test_times_are_tagged_once():
    fresh = host("spot-a-0001")
    running = ray_node("spot-a-0001", RayNodeStatus.RUNNING)
    assert new_tags(fresh, None, 5.0) == {}
    assert new_tags(fresh, running, 5.0) == {UP_TAG: "5.0"}
    known = host("spot-a-0001", tags={UP_TAG: "5.0"})
    assert new_tags(known, running, 9.0) == {}
    draining = ray_node("spot-a-0001", RayNodeStatus.DRAINING)
    assert new_tags(known, draining, 9.0) == {DRAINING_TAG: "9.0"}


def test_a_host_record_gives_the_same_events_every_time():
    ended = host(
        "spot-a-0001",
        tags={UP_TAG: "110.000", DRAINING_TAG: "151.000"},
        notice=Notice(given_at=150.0, deadline=180.0, why="reclaim"),
        gone_at=180.2,
        gone_why="taken: reclaim",
    )
    events = list(events_of(ended, SPEC.pool("spot-a")))
    assert [(e.t, e.kind) for e in events] == [
        (100.0, "requested"),
        (110.0, "up"),
        (150.0, "notice"),
        (151.0, "draining"),
        (180.2, "gone"),
    ]
    assert events[2].deadline == 180.0
    assert events == list(events_of(ended, SPEC.pool("spot-a")))
