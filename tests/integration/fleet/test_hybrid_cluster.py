"""`cluster_configs/hybrid-aws.yaml` as it stands, trained on: a rack first, then EC2 spot."""

from __future__ import annotations

import json
import logging
import re
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from box_cluster import BoxCluster, replaced
from support import wait_for

from rayburst.dev.cloud.box import why_not
from rayburst.dev.cloud.cloud import Cloud
from rayburst.dev.cloud.market import ANY

pytestmark = [
    pytest.mark.soak,
    pytest.mark.timeout(600),
    pytest.mark.skipif(why_not() is not None, reason=f"no box here: {why_not()}"),
    pytest.mark.skipif(shutil.which("rsync") is None, reason="`ray up` needs rsync"),
]
FILE = Path(__file__).parents[3] / "cluster_configs" / "hybrid-aws.yaml"
A, B = "us-east-1a", "us-east-1b"
STEPS = 400
LOG = logging.getLogger(__name__)


def for_the_box(cloud: Cloud, cluster: BoxCluster) -> str:
    """The fleet file with the box's addresses and short times; one rack, for the CPU."""
    ours = {
        "s3://my-bucket/hybrid": f"s3://fleet/hybrid, endpoint: '{cluster.store.endpoint}'",
        "idle_timeout: 2m": "idle_timeout: 5s",
        "drain: 60s": "drain: 10s",
        "join: 20m": "join: 90s",
        "10.0.0.6": cluster.hosts["head"].address,
        "10.0.0.7, 10.0.0.8": cluster.hosts["rack-1"].address,
        "{min: 0, max: 2}": "{max: 1}",
        "user: ray": "user: root",
        "{cpus: 4, memory: 16GiB}": "{cpus: 1, memory: 1GiB}",
        "ami-0123456789abcdef0": cloud.ami,
        "subnet-0aaa1111": cloud.subnets[A],
        "subnet-0bbb2222": cloud.subnets[B],
        "security_groups: [sg-0123abcd]": f"endpoint: '{cloud.endpoint}'",
        "      profile: rayburst-node\n": "",
    }
    return replaced(FILE.read_text(), ours) + f"software: {{python: {sys.executable}}}\n"


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    with Cloud(tmp_path_factory.mktemp("cloud"), zones=2) as cloud:
        yield cloud


@pytest.fixture(scope="module")
def cluster(cloud: Cloud) -> Iterator[BoxCluster]:
    """Brought up by `ray up`, ended by `ray down`; neither leaves anything."""
    cluster = BoxCluster(cloud.box, racks=1, fleet="hybrid-aws")
    keys = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    cloud.image.update({key: cluster.store.environment()[key] for key in keys})
    cluster.put("laptop", "~/hybrid-aws.yaml", for_the_box(cloud, cluster))
    cluster.laptop("rayburst fleet render hybrid-aws.yaml --to ray-up > hybrid-aws.ray.yaml")
    cluster.laptop("ray up -y --no-config-cache hybrid-aws.ray.yaml", timeout_s=180)
    cluster.tunnel()
    yield cluster
    cluster.laptop("ray down -y hybrid-aws.ray.yaml", timeout_s=120)
    for host in ("head", "rack-1"):
        assert cluster.processes_on(host) == []
        assert "lease.json" not in cluster.on(host, "ls -A ~/.rayburst")
    assert cloud.instances() == []


def trains_with(cluster: BoxCluster, job: str, workers: int) -> str:
    """Wait until a job has told of a step with so many workers; its log."""

    def told() -> str | None:
        log = cluster.log_of(job)
        return log if f"world {workers}" in log else None

    return wait_for(told, what=f"{job} to train with {workers}", timeout_s=120)


def of_pool(cluster: BoxCluster, pool: str) -> dict[str, dict[str, dict[str, Any]]]:
    """Node -> kind of event -> event, for the hosts of a pool, the oldest first."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for event in cluster.events():
        if event["pool"] == pool:
            found.setdefault(event["node"], {})[event["kind"]] = event
    return found


def all_given_back(cloud: Cloud, cluster: BoxCluster) -> None:
    """The cloud is empty, the rack is nobody's, and each node that was requested has ended once."""
    wait_for(lambda: not cloud.instances() or None, what="an empty cloud", timeout_s=90)
    wait_for(lambda: not cluster.living() or None, what="the rack to be given back", timeout_s=60)
    assert cluster.processes_on("rack-1") == []
    told = cluster.events()
    ended = [event["node"] for event in told if event["kind"] == "gone"]
    assert sorted(ended) == sorted({event["node"] for event in told})


def test_training_fills_the_rack_bursts_onto_spot_and_goes_on_after_a_notice(
    cloud: Cloud, cluster: BoxCluster
) -> None:
    assert cloud.instances() == [] and cluster.living() == {}, "nothing before there is work"
    market = cloud.ec2.market
    market.capacity[ANY, A, "spot"] = 0
    with cluster.explained():
        job = cluster.train("first", f"--workers 1:2 --steps {STEPS}", {"span": "any"})
        trains_with(cluster, job, 2)
        (rack,), (spot,) = of_pool(cluster, "rack").values(), of_pool(cluster, "spot-b").values()
        assert rack["requested"]["t"] <= spot["requested"]["t"], "machines of one's own first"
        assert of_pool(cluster, "spot-a") == {} and cloud.ec2.calls.count("CreateFleet") == 2, (
            "the zone without capacity was asked once, then the other"
        )
        assert of_pool(cluster, "cloud") == {}, "nothing asked for on-demand"

        market.capacity[ANY, B, "spot"] = 0
        (instance,) = cloud.instances()
        at = time.time()
        deadline = cloud.interrupt(instance.id, notice_s=25)
        log = trains_with(cluster, job, 1)
        noticed = of_pool(cluster, "spot-b")[spot["up"]["node"]]
        LOG.info("the notice was drained after %.2f s", noticed["draining"]["t"] - at)
        assert abs(noticed["notice"]["deadline"] - deadline) <= 1, "EC2 tells whole seconds"
        assert noticed["draining"]["t"] < deadline
        assert re.search(r"training with 1 worker from step \d+ after .* without a step", log)
        assert "steps again" not in log, "it had notice and lost no step"

        log = cluster.ended(job, timeout_s=240)
        LOG.info("%s", log)
        assert result(log)["steps"] == STEPS
        all_given_back(cloud, cluster)


def test_on_demand_comes_when_a_deadline_needs_it_and_goes_when_spot_is_back(
    cloud: Cloud, cluster: BoxCluster
) -> None:
    market = cloud.ec2.market
    for zone in (A, B):
        market.capacity[ANY, zone, "spot"] = 0
    with cluster.explained():
        terms = {"span": "any", "deadline": "20m"}
        job = cluster.train("second", "--workers 2:2 --steps 3000", terms)
        trains_with(cluster, job, 2)
        (cloudy,) = of_pool(cluster, "cloud").values()
        assert "gone" not in cloudy
        market.clear()

        def left() -> dict[str, dict[str, Any]] | None:
            (one,) = of_pool(cluster, "cloud").values()
            return one if "gone" in one else None

        cloudy = wait_for(left, what="the on-demand instance to go", timeout_s=150)
        spots = of_pool(cluster, "spot-a") | of_pool(cluster, "spot-b")
        assert any(one["up"]["t"] <= cloudy["notice"]["t"] for one in spots.values() if "up" in one)
        cluster.asking(f"ray job stop {job}")
        all_given_back(cloud, cluster)


def result(log: str) -> dict[str, Any]:
    """What a training job printed last."""
    line = next(line for line in log.splitlines() if line.startswith("RESULT "))
    return dict(json.loads(line.removeprefix("RESULT ")))
