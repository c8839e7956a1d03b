"""EC2 pools against an EC2 endpoint that refuses, forgets and takes away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rayburst.dev.cloud.ec2_server import Ec2Server
from rayburst.dev.embedded import up
from rayburst.errors import (
    PoolCapacityError,
    PoolError,
    PoolQuotaError,
    PoolThrottledError,
    SpecError,
)
from rayburst.fleet.pools import ec2 as module
from rayburst.fleet.pools.base import PoolSite
from rayburst.fleet.pools.ec2 import LAUNCH_REQUEST, REAP_S, Ec2Pool
from rayburst.fleet.pools.ec2_api import Ec2Api
from rayburst.fleet.pools.ec2_memory import REMEMBER_S
from rayburst.fleet.spec import FleetSpec, PoolSpec

ZONES = ("us-east-1a", "us-east-1b")
TYPES = ("m6i.large", "m6a.large")


@pytest.fixture
def spec(ec2_block: str) -> FleetSpec:
    return FleetSpec.parse(text_of(ec2_block))


def text_of(ec2_block: str) -> str:
    return f"""
name: burst
object_store: {{uri: s3://bucket}}
pools:
  - {{name: spot, kind: ec2, market: spot, shape: {{cpus: 2, memory: 8GiB}}, region: us-east-1,
     price: unknown, hosts: {{max: 4}}, ec2: {ec2_block}}}
  - {{name: cloud, kind: ec2, market: on-demand, shape: {{cpus: 2, memory: 8GiB}},
     region: us-east-1, price: 0.1 USD/h, hosts: {{max: 4}}, ec2: {ec2_block}}}
"""


@pytest.fixture
def site(tmp_path: Path) -> PoolSite:
    return PoolSite(fleet="burst", folder=tmp_path / "head", subnet="")


@pytest.fixture
def pool(spec: FleetSpec, site: PoolSite) -> Ec2Pool:
    return Ec2Pool(spec.pool("spot"), site)


def launch(pool: Ec2Pool, count: int = 1, request: str = "") -> list[str]:
    tags = {LAUNCH_REQUEST: request} if request else {}
    return pool.launch(count, tags=tags, why="pending work")


def offer(server: Ec2Server, hosts: Mapping[tuple[str, str], int], market: str = "spot") -> None:
    """A market with so many hosts by type and zone, and none elsewhere."""
    for kind in TYPES:
        for zone in ZONES:
            server.market.capacity[kind, zone, market] = hosts.get((kind, zone), 0)


def test_a_launch_goes_where_there_is_capacity(pool: Ec2Pool, ec2_server: Ec2Server) -> None:
    offer(ec2_server, {("m6a.large", "us-east-1b"): 1})
    launch(pool)
    (instance,) = ec2_server.living()
    place = (instance.instance_type, ec2_server.zone(instance.subnet_id), instance.lifecycle)
    assert place == ("m6a.large", "us-east-1b", "spot")
    assert pool.hosts()[0].address == instance.private_ip


def test_no_capacity_names_every_place_and_leaves_nothing(
    pool: Ec2Pool, ec2_server: Ec2Server
) -> None:
    offer(ec2_server, {("m6i.large", "us-east-1a"): 1})
    with pytest.raises(PoolCapacityError, match="1 of 2") as refused:
        launch(pool, 2)
    for kind in TYPES:
        assert kind in str(refused.value)
    assert ec2_server.living() == []
    launch(pool, 1)
    with pytest.raises(PoolCapacityError, match="InsufficientInstanceCapacity"):
        launch(pool)
    assert [(one.asked, one.got) for one in ec2_server.launches] == [(2, 1), (1, 1), (1, 0)]


def test_a_quota_is_told_as_one(
    spec: FleetSpec, site: PoolSite, pool: Ec2Pool, ec2_server: Ec2Server
) -> None:
    ec2_server.market.quota.update({"spot": 1, "on-demand": 0})
    launch(pool)
    with pytest.raises(PoolQuotaError, match="MaxSpotInstanceCountExceeded"):
        launch(pool)
    with pytest.raises(PoolQuotaError, match="Service Quotas"):
        launch(Ec2Pool(spec.pool("cloud"), site))
    told = [(one.market, one.got) for one in ec2_server.launches]
    assert told == [("spot", 1), ("spot", 0), ("on-demand", 0)]


def test_on_demand_is_bought_as_such_at_the_price_of_the_file(
    spec: FleetSpec, site: PoolSite, ec2_server: Ec2Server
) -> None:
    pool = Ec2Pool(spec.pool("cloud"), site)
    launch(pool)
    assert ec2_server.living()[0].lifecycle != "spot"
    assert pool.hosts()[0].price_usd_per_hour == 0.1


@pytest.mark.parametrize("code", ["RequestLimitExceeded", "InternalError"])
def test_a_call_that_fails_twice_is_made_again(
    pool: Ec2Pool, ec2_server: Ec2Server, code: str
) -> None:
    ec2_server.fail("CreateFleet", code=code, status=503, times=2)
    launch(pool)
    assert ec2_server.calls.count("CreateFleet") == 3
    assert len(ec2_server.living()) == 1


def test_throttling_that_lasts_is_told_as_such(pool: Ec2Pool, ec2_server: Ec2Server) -> None:
    ec2_server.fail("CreateFleet", code="RequestLimitExceeded", times=99)
    with pytest.raises(PoolThrottledError, match="RequestLimitExceeded"):
        launch(pool)
    assert ec2_server.living() == []


def test_credentials_that_do_not_do_are_told_as_such(pool: Ec2Pool, ec2_server: Ec2Server) -> None:
    ec2_server.fail("CreateFleet", code="UnauthorizedOperation", status=403)
    with pytest.raises(PoolError, match="credentials of this machine do not allow it"):
        launch(pool)


def test_the_same_request_launches_once(
    spec: FleetSpec, site: PoolSite, pool: Ec2Pool, ec2_server: Ec2Server
) -> None:
    first = launch(pool, 2, request="r-1")
    assert launch(Ec2Pool(spec.pool("spot"), site), 2, request="r-1") == first
    assert len(ec2_server.living()) == 2
    assert launch(pool, 1, request="r-2") != first


def test_instance_metadata_answers_to_tokens_only(pool: Ec2Pool, ec2_server: Ec2Server) -> None:
    launch(pool)
    launch(pool)
    (template,) = ec2_server.backend().launch_templates.values()  # one, however many launches
    assert template.default_version().data["MetadataOptions"]["HttpTokens"] == "required"


def test_a_new_head_adopts_what_an_earlier_one_launched(
    spec: FleetSpec, site: PoolSite, pool: Ec2Pool, tmp_path: Path
) -> None:
    (host,) = launch(pool, request="r-1")
    pool.tag(host, {"rayburst-up-at": "5.0"})
    elsewhere = replace(site, folder=tmp_path / "another-head")
    (adopted,) = Ec2Pool(spec.pool("spot"), elsewhere).hosts()
    assert adopted.id == host
    assert adopted.tags == {LAUNCH_REQUEST: "r-1", "rayburst-up-at": "5.0"}
    assert adopted.requested_at == pool.hosts()[0].requested_at
    stranger = replace(site, fleet="other", folder=tmp_path / "other")
    assert Ec2Pool(spec.pool("spot"), stranger).hosts() == []


class LateApi(Ec2Api):
    """EC2 whose listings do not show yet what was done."""

    late = False

    def instances(self, filters: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        return [] if self.late else super().instances(filters)


def test_what_ec2_does_not_tell_yet_counts_all_the_same(
    spec: FleetSpec, site: PoolSite, ec2_server: Ec2Server
) -> None:
    def late_pool() -> Ec2Pool:
        api = LateApi("spot", region="us-east-1", endpoint=ec2_server.url)
        api.late = True
        return Ec2Pool(spec.pool("spot"), replace(site, clock=lambda: now[0]), api=api)

    now = [1_000.0]
    hosts = launch(late_pool(), 4)
    assert [host.id for host in late_pool().hosts()] == sorted(hosts)
    with pytest.raises(PoolError, match="at most 4"):
        launch(late_pool())
    late_pool().tag(hosts[0], {"a": "b"})
    late_pool().terminate(hosts[0], why="given back")
    seen = {host.id: host for host in late_pool().hosts()}
    assert seen[hosts[0]].tags == {"a": "b"}
    assert (seen[hosts[0]].lives, seen[hosts[1]].lives) == (False, True)
    now[0] += REMEMBER_S
    assert late_pool().hosts() == []  # EC2 has had time to tell: what it does not know is not there


def test_a_reclaimed_host_is_taken_at_one_time(
    spec: FleetSpec, site: PoolSite, ec2_server: Ec2Server
) -> None:
    now = [1_000.0]
    pool = Ec2Pool(spec.pool("spot"), replace(site, clock=lambda: now[0]))
    launch(pool)
    ec2_server.reclaim(ec2_server.living()[0].id)
    now[0] = 1_060.0

    def seen() -> tuple[float | None, str]:
        (host,) = Ec2Pool(spec.pool("spot"), replace(site, clock=lambda: now[0])).hosts()
        return host.gone_at, host.gone_why

    first = seen()
    assert first == (1_060.0, "taken: EC2 reclaimed the spot instance")
    now[0] += 600
    assert seen() == first


def test_an_end_that_never_reached_ec2_is_carried_out_later(
    spec: FleetSpec, site: PoolSite, ec2_server: Ec2Server
) -> None:
    now = [1_000.0]

    def pool() -> Ec2Pool:
        return Ec2Pool(spec.pool("spot"), replace(site, clock=lambda: now[0]))

    (host,) = launch(pool())
    ec2_server.fail("TerminateInstances", code="InternalError", times=3)
    with pytest.raises(PoolError):
        pool().terminate(host, why="given back")
    assert len(ec2_server.living()) == 1
    assert not pool().hosts()[0].lives
    now[0] += REAP_S + 1
    assert pool().hosts()[0].gone_why == "given back"
    assert ec2_server.living() == []


def test_an_end_that_ec2_tells_of_is_not_asked_for_again(
    pool: Ec2Pool, ec2_server: Ec2Server
) -> None:
    (host,) = launch(pool)
    pool.terminate(host, why="given back")
    assert ec2_server.calls.count("TerminateInstances") == 1
    for _ in range(3):
        pool.terminate(host, why="its end was journalled")
    assert ec2_server.calls.count("TerminateInstances") == 1


def test_hosts_are_known_for_a_while_when_ec2_does_not_answer(
    pool: Ec2Pool, ec2_server: Ec2Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FRESH_S", -1.0)
    (host,) = launch(pool)
    assert [one.id for one in pool.hosts()] == [host]
    ec2_server.fail("DescribeInstances", code="InternalError", times=99)
    assert [one.id for one in pool.hosts()] == [host]
    monkeypatch.setattr(module, "STALE_S", -1.0)
    with pytest.raises(PoolError, match="InternalError"):
        pool.hosts()


def test_a_pool_without_its_block_is_refused(site: PoolSite, spec: FleetSpec) -> None:
    entry: PoolSpec = spec.pool("spot").model_copy(update={"ec2": None})
    with pytest.raises(PoolError, match="needs a block"):
        Ec2Pool(entry, site)


def test_a_fleet_on_loopback_refuses_hosts_that_cannot_join_it(
    ec2_block: str, ec2_server: Ec2Server, tmp_path: Path
) -> None:
    file = tmp_path / "fleet.yaml"
    file.write_text(text_of(ec2_block))
    with pytest.raises(SpecError, match="hosts of spot, cloud are other machines"):
        up(file, root=tmp_path)
    assert ec2_server.calls == []
