"""Instances of the EC2 endpoint are hosts: SSH, metadata, user data, a market that takes them."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from secrets import token_hex
from typing import Any

import boto3
import psutil
import pytest
from support import wait_for

from rayburst.dev.cloud.box import BoxHost, why_not
from rayburst.dev.cloud.cloud import Cloud, Instance
from rayburst.dev.cloud.script import parse_script
from rayburst.errors import NodeNotFoundError, SpecError
from rayburst.fleet import processes

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(why_not() is not None, reason=f"no box here: {why_not()}"),
]
ZONE = "us-east-1a"


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    folder = tmp_path_factory.mktemp("cloud")
    with Cloud(folder, zones=2, image={"FROM_THE_IMAGE": "yes"}) as cloud:
        yield cloud
    assert processes.owned(folder) == []


@pytest.fixture
def ec2(cloud: Cloud) -> Iterator[Any]:
    """A client; what it launched ends with the test."""
    keys = {"aws_access_key_id": "any", "aws_secret_access_key": "any"}
    yield boto3.client("ec2", region_name="us-east-1", endpoint_url=cloud.ec2.url, **keys)
    cloud.ec2.market.clear()
    if living := [one.id for one in cloud.instances()]:
        cloud.ec2.backend().terminate_instances(living)
    wait_for(lambda: not cloud.box.hosts or None, what="the end of all hosts")


def launch(cloud: Cloud, ec2: Any, data: str = "#!/bin/sh\ntrue\n", count: int = 1) -> list[str]:
    """Spot instances of one zone by a fleet request, as pools make it."""
    name = token_hex(4)
    ec2.create_launch_template(
        LaunchTemplateName=name,
        LaunchTemplateData={
            "ImageId": cloud.ami,
            "UserData": base64.b64encode(data.encode()).decode(),
        },
    )
    override = {"InstanceType": "m6i.large", "SubnetId": cloud.subnets[ZONE]}
    reply = ec2.create_fleet(
        Type="instant",
        TargetCapacitySpecification={
            "TotalTargetCapacity": count,
            "DefaultTargetCapacityType": "spot",
        },
        LaunchTemplateConfigs=[
            {
                "LaunchTemplateSpecification": {"LaunchTemplateName": name, "Version": "$Default"},
                "Overrides": [override],
            }
        ],
    )
    assert not reply.get("Errors"), reply["Errors"]
    return [i for group in reply["Instances"] for i in group["InstanceIds"]]


def up(cloud: Cloud, instance: str) -> tuple[Instance, BoxHost]:
    def found() -> Instance | None:
        return next((one for one in cloud.instances() if one.id == instance and one.pid), None)

    return wait_for(found, what=f"{instance} to be up"), cloud.box.hosts[instance]


def on(cloud: Cloud, host: str, code: str) -> str:
    """What Python says on a host."""
    command = cloud.box.inside([sys.executable, "-c", code], host=host)
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


READ = """
import sys, requests
base = "http://169.254.169.254/latest"
ttl = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
token = requests.put(base + "/api/token", headers=ttl, timeout=5).text
for path in %r:
    answer = requests.get(base + path, headers={"X-aws-ec2-metadata-token": token}, timeout=5)
    print(answer.text if answer.ok else answer.status_code)
print(requests.get(base + "/meta-data/instance-id", timeout=5).status_code)
"""


def test_an_instance_is_a_host_and_its_end_is_the_hosts(cloud: Cloud, ec2: Any) -> None:
    data = "#!/bin/sh\necho $FROM_THE_IMAGE $(id -un) > /run/ran\nexec sleep 4713\n"
    (instance,) = launch(cloud, ec2, data)
    seen, host = up(cloud, instance)
    described = ec2.describe_instances(InstanceIds=[instance])["Reservations"][0]["Instances"][0]
    assert seen.address == host.address == described["PrivateIpAddress"]
    assert (seen.zone, seen.market) == (ZONE, "spot")
    assert cloud.box.run(host.ssh("hostname")).stdout.strip() == instance

    def ran() -> str | None:
        return cloud.box.run(host.ssh("cat /run/ran"), check=False).stdout.strip() or None

    assert wait_for(ran, what="its user data to run") == "yes root"
    paths = ["/meta-data/instance-id", "/meta-data/spot/instance-action", "/user-data"]
    said = on(cloud, instance, READ % paths).splitlines()
    assert said[:3] == [instance, "404", "#!/bin/sh"]
    assert said[-1] == "401", "its metadata service answers to tokens only"
    found = [p for p in psutil.process_iter(["cmdline"]) if "4713" in (p.info["cmdline"] or [])]
    assert found, "what its user data started runs"
    ec2.terminate_instances(InstanceIds=[instance])
    wait_for(lambda: instance not in cloud.box.hosts or None, what="the end of its host")
    wait_for(lambda: not any(map(processes.alive, found)) or None, what="the end of its processes")
    assert cloud.instances() == []


def test_two_instances_are_two_machines_with_two_metadata_services(cloud: Cloud, ec2: Any) -> None:
    first, second = launch(cloud, ec2, count=2)
    for one in (first, second):
        up(cloud, one)
    deadline = cloud.interrupt(first, notice_s=600)
    action = ["/meta-data/instance-id", "/meta-data/spot/instance-action"]
    told = on(cloud, first, READ % action).splitlines()
    assert told[0] == first and json.loads(told[1])["action"] == "terminate"
    assert deadline - time.time() > 500
    assert on(cloud, second, READ % action).splitlines()[:2] == [second, "404"]
    cloud.recommend_rebalance(second)
    rebalance = ["/meta-data/events/recommendations/rebalance"]
    assert "noticeTime" in on(cloud, second, READ % rebalance)


def test_a_script_moves_the_market_and_takes_what_is_above_it(cloud: Cloud, ec2: Any) -> None:
    script = f"""
- {{at: 0s, capacity: 1, zone: {ZONE}}}
- {{at: 0s, price: 0.031 USD/h, zone: {ZONE}, type: m6i.large}}
- {{at: 1h, capacity: 0, zone: {ZONE}, notice: 2s}}
"""
    player = cloud.play(parse_script(script, source="test"), speed=1.0)
    (instance,) = launch(cloud, ec2)
    up(cloud, instance)
    with pytest.raises(AssertionError, match="InsufficientInstanceCapacity"):
        launch(cloud, ec2)
    history = ec2.describe_spot_price_history(InstanceTypes=["m6i.large"])["SpotPriceHistory"]
    assert [(one["AvailabilityZone"], float(one["SpotPrice"])) for one in history] == [
        (ZONE, 0.031)
    ]
    player.step(time.time() + 3600)
    assert player.done
    assert [one.reclaimed_at is not None for one in cloud.instances()] == [True]
    wait_for(lambda: not cloud.box.hosts or None, what="the host to be taken", timeout_s=20)
    gone = ec2.describe_instances(InstanceIds=[instance])["Reservations"][0]["Instances"][0]
    assert gone["StateReason"]["Code"] == "Server.SpotInstanceTermination"


def test_an_instance_that_shuts_itself_down_is_terminated(cloud: Cloud, ec2: Any) -> None:
    (instance,) = launch(
        cloud, ec2, "#!/bin/sh\nwhile [ ! -e /run/go ]; do sleep 0.1; done\nshutdown\n"
    )
    _, host = up(cloud, instance)
    cloud.box.run(host.ssh("touch /run/go"))
    wait_for(lambda: not cloud.instances() or None, what="EC2 to hear of it", timeout_s=20)
    gone = ec2.describe_instances(InstanceIds=[instance])["Reservations"][0]["Instances"][0]
    assert gone["StateReason"]["Code"] == "Client.InstanceInitiatedShutdown"


def test_the_endpoint_answers_in_the_box_too(cloud: Cloud, ec2: Any) -> None:
    (instance,) = launch(cloud, ec2)
    up(cloud, instance)
    code = (
        "import boto3\n"
        "at = dict(aws_access_key_id='any', aws_secret_access_key='any', region_name='us-east-1')\n"
        f"ec2 = boto3.client('ec2', endpoint_url={cloud.endpoint!r}, **at)\n"
        "print([i['InstanceId'] for r in ec2.describe_instances()['Reservations'] "
        "for i in r['Instances'] if i['State']['Name'] == 'running'])\n"
    )
    assert on(cloud, instance, code) == str([instance])


def test_what_it_does_not_know_is_said(cloud: Cloud, ec2: Any, tmp_path: Path) -> None:
    with pytest.raises(NodeNotFoundError, match="no instance 'i-1' in this cloud; it has: none"):
        cloud.interrupt("i-1", notice_s=1)
    step = parse_script("- {at: 0s, capacity: 1, zone: moon-1a}", source="x")
    with pytest.raises(SpecError, match="moon-1a; the zones of this cloud are us-east-1a"):
        cloud.play(step)
