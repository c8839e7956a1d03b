"""Notices of hosts on other machines reach their record, and Ray, and are carried out in time."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict

import pytest

from rayburst.fleet._ray_hooks import RayNode, RayNodeStatus, RayView
from rayburst.fleet.farewells import Farewells
from rayburst.fleet.observer import DRAINING_TAG
from rayburst.fleet.pools.base import Notice
from rayburst.fleet.pools.fake import FakePool
from rayburst.fleet.pools.luggage import drained_key, notice_key
from rayburst.fleet.spec import FleetSpec

SPEC = FleetSpec.parse("""\
name: lab
object_store: {uri: s3://bucket}
pools:
  - {name: rack, kind: ssh, market: on-prem, shape: {cpus: 1, memory: 1GiB}, hosts: {max: 2},
     ssh: {hosts: [10.0.0.7, 10.0.0.8], user: ray}}
  - {name: near, kind: process, market: spot, shape: {cpus: 1, memory: 1GiB}, hosts: {max: 1}}
""")
WANTED = Notice(given_at=10.0, deadline=70.0, why="its owner wants it back")
PLANNED = Notice(given_at=10.0, deadline=40.0, why="the budget", planned=True)


class Head:
    """What the agent needs of Ray's head here: a store of keys, and drains."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}
        self.drained: list[tuple[str, float]] = []

    def read(self, keys: Iterable[str]) -> dict[str, bytes]:
        return {key: self.kept[key] for key in keys if key in self.kept}

    def drain(self, node_id: str, *, why: str, deadline: float, idle: bool) -> bool:
        self.drained.append((node_id, deadline))
        return True


@pytest.fixture
def pools() -> dict[str, FakePool]:
    made = {pool.name: FakePool(pool, clock=lambda: 50.0) for pool in SPEC.pools}
    made["rack"].launch(2, tags={}, why="x")
    made["near"].launch(1, tags={}, why="x")
    return made


def ray(*hosts: str, status: RayNodeStatus = RayNodeStatus.RUNNING) -> RayView:
    def node(host: str) -> RayNode:
        cpu = {"CPU": 1.0}
        return RayNode(
            node_id=f"node-of-{host}",
            host=host,
            status=status,
            address="10.0.0.7",
            total=cpu,
            available=cpu,
            idle_s=0.0,
        )

    return RayView(nodes=tuple(map(node, hosts)), requests=())


def test_what_a_watcher_told_is_on_record_once(pools: dict[str, FakePool]) -> None:
    head, rack = Head(), pools["rack"]
    farewells = Farewells(SPEC, pools, head)
    assert not farewells.hear(rack.hosts())
    head.kept[notice_key("rack-0001")] = json.dumps(asdict(WANTED)).encode()
    assert farewells.hear(rack.hosts())
    assert {host.id: host.notice for host in rack.hosts()} == {
        "rack-0000": None,
        "rack-0001": WANTED,
    }
    assert not farewells.hear(rack.hosts())


def test_a_drain_is_on_record_with_the_moment_at_which_ray_took_it(
    pools: dict[str, FakePool],
) -> None:
    head, rack = Head(), pools["rack"]
    farewells = Farewells(SPEC, pools, head, clock=lambda: 12.9)
    head.kept[notice_key("rack-0000")] = json.dumps(asdict(WANTED)).encode()
    head.kept[drained_key("rack-0000")] = b"10.3"
    assert farewells.hear(rack.hosts())
    assert rack.hosts()[0].tags[DRAINING_TAG] == "10.3"
    assert not farewells.hear(rack.hosts())

    rack.notify("rack-0001", WANTED)
    head.kept[drained_key("rack-0001")] = b"11.7"  # since the agent's round began
    farewells.carry_out(rack.hosts(), ray("rack-0001"), 12.0)
    assert rack.hosts()[1].tags[DRAINING_TAG] == "11.7"
    assert head.drained == [], "their watchers have done it"
    farewells.carry_out(rack.hosts(), ray("rack-0001"), 13.0)
    assert head.drained == [("node-of-rack-0001", 70.0)], "Ray does not know of it any more"


def test_a_host_that_is_sent_away_is_drained_and_ended_at_its_deadline(
    pools: dict[str, FakePool],
) -> None:
    head, rack = Head(), pools["rack"]
    farewells = Farewells(SPEC, pools, head, clock=lambda: 20.4)
    rack.notify("rack-0000", PLANNED)
    farewells.carry_out(rack.hosts(), ray("rack-0000", "rack-0001"), 20.0)
    assert head.drained == [("node-of-rack-0000", 40.0)]
    assert [host.tags.get(DRAINING_TAG) for host in rack.hosts()] == ["20.4", None]
    drains = ray("rack-0000", status=RayNodeStatus.DRAINING)
    farewells.carry_out(rack.hosts(), drains, 39.9)
    assert len(head.drained) == 1, "Ray drains it already"
    assert all(host.lives for host in rack.hosts())
    farewells.carry_out(rack.hosts(), drains, 40.0)
    assert [host.gone_why for host in rack.hosts()] == ["given back: the budget", ""]


def test_what_an_owner_takes_is_left_to_the_machine_and_its_pool(
    pools: dict[str, FakePool],
) -> None:
    head, rack = Head(), pools["rack"]
    rack.notify("rack-0000", WANTED)
    Farewells(SPEC, pools, head).carry_out(rack.hosts(), ray("rack-0000"), 99.0)
    assert head.drained == [("node-of-rack-0000", 70.0)], "in case its watcher could not"
    assert all(host.lives for host in rack.hosts())


def test_hosts_of_this_machine_do_it_themselves(pools: dict[str, FakePool]) -> None:
    head, near = Head(), pools["near"]
    near.notify("near-0000", PLANNED)
    head.kept[notice_key("near-0000")] = b"{}"
    farewells = Farewells(SPEC, pools, head)
    assert not farewells.hear(near.hosts())
    farewells.carry_out(near.hosts(), ray("near-0000"), 99.0)
    assert head.drained == []
    assert near.hosts()[0].lives
