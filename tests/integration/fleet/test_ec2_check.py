"""`rayburst fleet check --live` of ec2 pools: what EC2 has of what they name, and what is wrong."""

from __future__ import annotations

import pytest

from rayburst.dev.cloud.ec2_server import Ec2Server
from rayburst.fleet.live_check import Find, check_live
from rayburst.fleet.spec import FleetSpec

FLEET = """\
name: lab
object_store: {{uri: s3://fleet}}
network: {{on_prem: [10.77.1.0/24], cloud: [{cloud}], route: vpn, encryption: wireguard}}
pools:
  - {{name: burst, kind: ec2, market: spot, region: us-east-1, zone: {zone},
     shape: {{cpus: {cpus}, memory: 8GiB}}, price: 0.1 USD/h, hosts: {{max: 2}}, ec2: {{
       types: [{types}], image: {image}, subnets: [{subnets}], security_groups: [{group}],
       endpoint: '{url}'}}}}
"""


@pytest.fixture
def good(ec2_server: Ec2Server) -> dict[str, object]:
    """A pool that names what is there."""
    backend = ec2_server.backend()
    zone, subnet = next(iter(ec2_server.subnets().items()))
    vpc = backend.get_subnet(subnet).vpc_id
    return {
        "cloud": backend.get_vpc(vpc).cidr_block,
        "zone": zone,
        "cpus": 2,
        "types": "m6i.large, m6a.large",
        "image": min(backend.amis),
        "subnets": subnet,
        "group": backend.create_security_group("nodes", "nodes", vpc_id=vpc).id,
        "url": ec2_server.url,
    }


def found(text: dict[str, object]) -> list[Find]:
    return check_live(FleetSpec.parse(FLEET.format(**text)), environment={})


def test_a_pool_that_names_what_is_there_is_found_so(good: dict[str, object]) -> None:
    finds = found(good)
    assert [find.wrong for find in finds] == [""] * 4
    assert {find.probe for find in finds} == {"image", "subnets", "types", "security groups"}
    said = {find.probe: find.said for find in finds}
    assert "m6i.large: 2 CPUs, 8 GiB" in said["types"] and "(nodes)" in said["security groups"]


@pytest.mark.parametrize(
    ("wrong", "about", "told"),
    [
        ({"image": "ami-00000000000000000"}, "image", "InvalidAMIID.NotFound"),
        ({"subnets": "subnet-00000000"}, "subnets", "InvalidSubnetID.NotFound"),
        ({"group": "sg-00000000"}, "security groups", "InvalidGroup.NotFound"),
        ({"zone": "us-east-1f"}, "subnets", "the pool's `zone` is us-east-1f"),
        ({"cloud": "10.200.0.0/16"}, "subnets", "in none of `network`'s cloud ranges"),
        ({"cpus": 4}, "types", "m6i.large has 2 CPUs, 8 GiB; `shape` says 4 CPUs, 8 GiB"),
        ({"types": "m6i.tiny"}, "types", "m6i.tiny"),
    ],
)
def test_what_is_not_there_or_does_not_fit_is_told(
    good: dict[str, object], wrong: dict[str, object], about: str, told: str
) -> None:
    (find,) = [find for find in found(good | wrong) if find.wrong]
    assert (find.host, find.probe) == ("burst", about) and told in find.wrong


def test_rights_that_are_missing_are_told_for_each(
    ec2_server: Ec2Server, good: dict[str, object]
) -> None:
    ec2_server.fail("DescribeImages", code="UnauthorizedOperation", status=403, times=9)
    (find,) = [find for find in found(good) if find.wrong]
    assert find.probe == "image" and "credentials of this machine do not allow it" in find.wrong
