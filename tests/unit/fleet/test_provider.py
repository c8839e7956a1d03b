"""The provider keeps what Ray's adapter needs, and only carries out."""

from __future__ import annotations

import time

import pytest
from ray.autoscaler.tags import TAG_RAY_LAUNCH_REQUEST, TAG_RAY_NODE_KIND, TAG_RAY_USER_NODE_TYPE

from rayburst.errors import PoolError
from rayburst.fleet import provider as module
from rayburst.fleet._ray_hooks import RayView
from rayburst.fleet.backoff import FIRST_S
from rayburst.fleet.failures import read_failures
from rayburst.fleet.layout import FleetDir
from rayburst.fleet.observer import fleet_view
from rayburst.fleet.openings import Opening, newest, write_openings
from rayburst.fleet.packing import Request
from rayburst.fleet.planner import plan_fleet
from rayburst.fleet.pools.fake import FakePool
from rayburst.fleet.spec import FleetSpec
from rayburst.fleet.view import Demand, Plan

SPEC = FleetSpec.parse(
    """
name: test
object_store: {kind: embedded}
pools:
  - {name: rack, kind: process, market: on-prem, shape: {cpus: 1, memory: 1GiB}, hosts: {max: 2}}
  - {name: spot, kind: process, market: spot, shape: {cpus: 1, memory: 1GiB}, hosts: {max: 2}}
"""
)


def tags(request: str) -> dict[str, str]:
    return {
        TAG_RAY_NODE_KIND: "worker",
        TAG_RAY_USER_NODE_TYPE: "rack",
        TAG_RAY_LAUNCH_REQUEST: request,
    }


@pytest.fixture
def pool() -> FakePool:
    return FakePool(SPEC.pool("rack"), clock=lambda: 50.0, failures=[None, "no capacity"])


@pytest.fixture
def provider(tmp_path, monkeypatch, pool):
    monkeypatch.setattr(module, "open_pools", lambda fleet: {"rack": pool})
    return module.HybridNodeProvider({"fleet_dir": str(tmp_path)}, "test")


def test_building_one_starts_nothing_and_lists_the_head(provider):
    assert provider.non_terminated_nodes({}) == ["head"]
    assert provider.node_tags("head")[TAG_RAY_NODE_KIND] == "head"


def test_every_tag_is_kept_the_launch_request_included(provider):
    (host,) = provider.create_node({"pool": "rack"}, tags("req-1"), 1)
    assert provider.node_tags(host) == tags("req-1")
    provider.set_node_tags(host, {"ray-node-status": "up-to-date"})
    assert provider.node_tags(host) == {**tags("req-1"), "ray-node-status": "up-to-date"}
    assert provider.non_terminated_nodes({TAG_RAY_NODE_KIND: "worker"}) == [host]


def test_a_failed_launch_is_raised_and_left_on_record_for_the_planner(provider, tmp_path):
    provider.create_node({}, tags("req-1"), 1)
    with pytest.raises(PoolError, match="no capacity"):
        provider.create_node({}, tags("req-2"), 1)
    failure = read_failures(FleetDir(tmp_path))["rack"]
    assert "no capacity" in failure.why
    assert len(failure.at) == 1


def test_a_failed_launch_opens_the_next_pool_in_the_next_plan(provider, pool, tmp_path):
    pool.launch(1, tags={}, why="x")  # the script's next launch fails

    def plan(now: float) -> Plan:
        ray = RayView(nodes=(), requests=())
        view = fleet_view(SPEC, pool.hosts(), ray, read_failures(FleetDir(tmp_path)), now)
        waiting = [Request(resources={"CPU": 1})] * 2  # one for the host that starts, one more
        return plan_fleet(view, Demand(requests=waiting))

    first = plan(time.time())
    assert (first.caps["rack"].max, first.caps["spot"].max) == (2, 0)
    with pytest.raises(PoolError):
        provider.create_node({}, tags("req-1"), 1)
    second = plan(time.time())
    assert (second.caps["rack"].max, second.caps["spot"].max) == (1, 1)
    assert plan(time.time() + FIRST_S).caps["rack"].max == 2


def test_a_host_that_goes_is_not_replaced_before_a_plan_says_so(provider, pool, tmp_path):
    (first,) = provider.create_node({}, tags("req-1"), 1)
    fleet = FleetDir(tmp_path)
    write_openings(fleet, {"rack": Opening(more=0, seen=(first,))})
    provider.terminate_node(first)
    with pytest.raises(PoolError, match="no plan granted"):
        provider.create_node({}, tags("req-2"), 1)
    assert len(pool.hosts()) == 1
    assert not (tmp_path / "failures").exists(), "the market has not failed"


def test_no_more_hosts_follow_than_were_granted_however_often_it_is_asked(tmp_path, monkeypatch):
    pool = FakePool(SPEC.pool("rack"), clock=lambda: 50.0)
    monkeypatch.setattr(module, "open_pools", lambda fleet: {"rack": pool})
    provider = module.HybridNodeProvider({"fleet_dir": str(tmp_path)}, "test")
    write_openings(FleetDir(tmp_path), {"rack": Opening(more=1, seen=())})
    with pytest.raises(PoolError, match="2 host"):
        provider.create_node({}, tags("req-1"), 2)
    (host,) = provider.create_node({}, tags("req-2"), 1)
    with pytest.raises(PoolError, match="1 host"):
        provider.create_node({}, tags("req-3"), 1)
    provider.terminate_node(host)  # gone before any plan has seen it: its opening is used up
    with pytest.raises(PoolError, match="1 host"):
        provider.create_node({}, tags("req-4"), 1)


def test_a_pool_that_failed_is_not_asked_again_before_a_plan_has_seen_it(provider, pool, tmp_path):
    fleet = FleetDir(tmp_path)
    (first,) = provider.create_node({}, tags("req-1"), 1)
    write_openings(fleet, {"rack": Opening(more=1, seen=(first,))})
    with pytest.raises(PoolError, match="no capacity"):
        provider.create_node({}, tags("req-2"), 1)
    with pytest.raises(PoolError, match="no plan granted"):
        provider.create_node({}, tags("req-3"), 1)
    failures = read_failures(fleet)
    assert len(failures["rack"].at) == 1, "asked once"
    again = Opening(more=1, seen=(first,), failed_at=newest(failures, "rack"))
    write_openings(fleet, {"rack": again})
    assert provider.create_node({}, tags("req-4"), 1)


def test_terminating_twice_and_the_unknown_is_no_error(provider, pool):
    (host,) = provider.create_node({}, tags("req-1"), 1)
    provider.terminate_nodes([host, host, "rack-ffff"])
    assert provider.is_terminated(host)
    assert provider.non_terminated_nodes({}) == ["head"]
    assert pool.hosts()[0].gone_why == "ended by the autoscaler"
