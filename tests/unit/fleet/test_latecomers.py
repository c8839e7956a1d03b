"""Hosts that never join are ended, and machines that vanished are told of to Ray."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from rayburst.fleet._ray_hooks import RayNode, RayNodeStatus, RayView
from rayburst.fleet.farewells import Farewells
from rayburst.fleet.observer import stillborn
from rayburst.fleet.pools.base import UP_TAG, Notice
from rayburst.fleet.pools.fake import FakePool
from rayburst.fleet.spec import FleetSpec

SPEC = FleetSpec.parse("""\
name: lab
object_store: {uri: s3://bucket}
limits: {join: 60s}
pools:
  - {name: spot, kind: ec2, market: spot, region: us-east-1, shape: {cpus: 1, memory: 1GiB},
     hosts: {max: 2}, ec2: {types: [m6i.large], image: ami-1, subnets: [subnet-1]}}
  - {name: near, kind: process, market: spot, shape: {cpus: 1, memory: 1GiB}, hosts: {max: 1}}
""")


class Head:
    """What is told to Ray's head here."""

    def __init__(self) -> None:
        self.gone: list[str] = []

    def read(self, keys: Iterable[str]) -> dict[str, bytes]:
        return {}

    def unregister(self, node_id: str, *, why: str) -> None:
        self.gone.append(node_id)


class World:
    def __init__(self) -> None:
        self.now, self.head = 100.0, Head()
        self.pools = {pool.name: FakePool(pool, clock=lambda: self.now) for pool in SPEC.pools}
        self.farewells = Farewells(SPEC, self.pools, self.head)  # type: ignore[arg-type]

    def round(self, *joined: str) -> None:
        nodes = tuple(
            RayNode(
                node_id=f"node-of-{host}",
                host=host,
                status=RayNodeStatus.RUNNING,
                address="10.0.0.7",
                total={"CPU": 1.0},
                available={},
                idle_s=0.0,
            )
            for host in joined
        )
        hosts = [host for pool in self.pools.values() for host in pool.hosts()]
        self.farewells.carry_out(hosts, RayView(nodes=nodes, requests=()), self.now)


@pytest.fixture
def world() -> World:
    return World()


def test_a_host_that_does_not_join_in_time_is_a_failed_launch(world: World) -> None:
    late, joined = world.pools["spot"].launch(2, tags={}, why="x")
    world.pools["spot"].tag(joined, {UP_TAG: "110"})
    near = world.pools["near"].launch(1, tags={}, why="x")
    world.now = 160.0
    world.round(joined)
    assert all(host.lives for host in world.pools["spot"].hosts()), "it has 60 s"
    world.now = 160.5
    world.round(joined)
    ended = {host.id: host for host in world.pools["spot"].hosts()}
    assert (ended[late].lives, ended[joined].lives) == (False, True)
    assert stillborn(ended[late]) == (160.5, f"{late}: it did not join within 60 s")
    assert world.pools["near"].hosts()[0].lives, f"{near}: process hosts know for themselves"


def test_a_host_that_left_on_a_recommendation_is_given_back(world: World) -> None:
    hosts = world.pools["spot"].launch(2, tags={UP_TAG: "100"}, why="x")
    for host, reclaim in zip(hosts, (False, True), strict=True):
        told = Notice(given_at=100.0, deadline=150.0, why="EC2 said so", reclaim=reclaim)
        world.pools["spot"].notify(host, told)
    world.now = 150.0
    world.round()
    recommended, taken = world.pools["spot"].hosts()
    assert recommended.gone_why == "given back: EC2 said so"
    assert taken.lives, "EC2 ends what it takes"


def test_ray_is_told_of_a_machine_that_vanished_once_its_own_word_is_due(world: World) -> None:
    (host,) = world.pools["spot"].launch(1, tags={UP_TAG: "100"}, why="x")
    world.round(host)
    world.pools["spot"].terminate(host, why="taken: EC2 reclaimed the spot instance")
    world.now += 5.0
    world.round(host)
    assert world.head.gone == [], "a raylet that ended in order has told it by then"
    world.now += 0.5
    world.round(host)
    world.round()
    assert world.head.gone == [f"node-of-{host}"]
