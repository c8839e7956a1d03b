"""`cluster_configs/hybrid-aws.yaml` as it stands, trained on: a rack first, then EC2 spot.

Too long for CI by its starts alone: of the cluster, of two jobs, of three hosts. There
`test_ray_up.py` and `test_ec2_cluster.py` try its parts.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from box_cluster import BoxCluster, replaced
from support import wait_for

from rayburst.dev.cloud.box import why_not
from rayburst.dev.cloud.cloud import Cloud
from rayburst.dev.cloud.ec2_server import Launch
from rayburst.dev.cloud.market import ANY

pytestmark = [
    pytest.mark.soak,
    pytest.mark.timeout(580),
    pytest.mark.skipif(why_not() is not None, reason=f"no box here: {why_not()}"),
    pytest.mark.skipif(shutil.which("rsync") is None, reason="`ray up` needs rsync"),
]
FILE = Path(__file__).parents[3] / "cluster_configs" / "hybrid-aws.yaml"
STEADY = Path(__file__).with_name("steady.py")
A, B = "us-east-1a", "us-east-1b"
TICK_S = 1.0
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


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that all hosts see: they have a /tmp of their own."""
    folder = Path(tempfile.mkdtemp(dir="/var/tmp"))
    yield folder
    shutil.rmtree(folder)


@contextmanager
def hybrid(cloud: Cloud) -> Iterator[BoxCluster]:
    """A cluster that `ray up` brought up; `ray down` ends it, and neither leaves anything."""
    cluster = BoxCluster(cloud.box, racks=1, fleet="hybrid-aws")
    keys = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    cloud.image.update({key: cluster.store.environment()[key] for key in keys})
    cluster.put("laptop", "~/hybrid-aws.yaml", for_the_box(cloud, cluster))
    cluster.laptop("rayburst fleet render hybrid-aws.yaml --to ray-up > hybrid-aws.ray.yaml")
    cluster.laptop("ray up -y --no-config-cache hybrid-aws.ray.yaml", timeout_s=180)
    cluster.tunnel()
    assert cloud.instances() == [] and cluster.living() == {}, "nothing before there is work"
    with cluster.explained():
        yield cluster
        all_given_back(cloud, cluster)
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


Events = dict[str, dict[str, Any]]
"""Of one host, by kind."""


def by_pool(cluster: BoxCluster) -> dict[str, list[Events]]:
    """The hosts of each pool that was used, the oldest first."""
    found: dict[str, dict[str, Events]] = {}
    for event in cluster.events():
        found.setdefault(event["pool"], {}).setdefault(event["node"], {})[event["kind"]] = event
    return {pool: list(hosts.values()) for pool, hosts in found.items()}


def all_given_back(cloud: Cloud, cluster: BoxCluster) -> None:
    """The cloud is empty, the rack is nobody's, and each node that was requested has ended once."""
    wait_for(lambda: not cloud.instances() or None, what="an empty cloud", timeout_s=90)
    wait_for(lambda: not cluster.living() or None, what="the rack to be given back", timeout_s=60)
    assert cluster.processes_on("rack-1") == []
    told = cluster.events()
    ended = [event["node"] for event in told if event["kind"] == "gone"]
    assert sorted(ended) == sorted({event["node"] for event in told})


def test_the_rack_fills_spot_bursts_on_demand_steps_in_and_the_cloud_is_left_empty(
    cloud: Cloud, shared: Path
) -> None:
    market = cloud.ec2.market
    market.capacity[ANY, A, "spot"] = 0
    with hybrid(cloud) as cluster:
        patient = cluster.train("first", "--workers 1:2 --steps 9000", {"span": "any"})
        trains_with(cluster, patient, 2)
        hosts = by_pool(cluster)
        assert hosts.keys() == {"rack", "spot-b"}, "spot-a is empty, nobody asked for on-demand"
        (rack,), (spot,) = hosts["rack"], hosts["spot-b"]
        assert rack["requested"]["t"] <= spot["requested"]["t"], "machines of one's own first"
        assert_next_pool_was_asked_soon(cloud.ec2.launches)

        market.capacity[ANY, B, "spot"] = 0
        (instance,) = cloud.instances()
        at = time.time()
        deadline = cloud.interrupt(instance.id, notice_s=25)
        submit_steady(cluster, "second", shared)
        log = trains_with(cluster, patient, 1)
        assert re.search(r"training with 1 worker from step \d+ after .* without a step", log)
        wait_for(lambda: "cloud" in pools_of(shared) or None, what="on-demand", timeout_s=120)
        hosts = by_pool(cluster)
        (spot,), (cloudy,) = hosts["spot-b"], hosts["cloud"]
        took_s = spot["draining"]["t"] - at
        LOG.info("the notice was drained after %.2f s", took_s)
        assert took_s <= 2
        assert abs(spot["notice"]["deadline"] - deadline) <= 1, "EC2 tells whole seconds"
        assert "gone" not in cloudy, "a deadline needs it, and there is no spot"

        market.clear()
        moved = wait_for(lambda: gone(cluster, "cloud"), what="on-demand to go", timeout_s=180)
        (cloudy,) = moved["cloud"]
        spots = moved.get("spot-a", []) + moved["spot-b"]
        up_at = [one["up"]["t"] for one in spots if "up" in one]
        assert any(cloudy["up"]["t"] < at <= cloudy["notice"]["t"] for at in up_at), "made first"
        wait_for(lambda: pools_of(shared)[-1].startswith("spot-") or None, what="it to go on there")
        later = cluster.log_of(patient)
        assert len(later) > len(log) and "steps again" not in later, "no step was lost"
        cluster.asking(f"ray job stop second; ray job stop {patient}")


def submit_steady(cluster: BoxCluster, job: str, shared: Path) -> None:
    """A job whose speed no other work on this machine changes, and that must be done in time.

    So near that it keeps on-demand while there is no spot, so far that it leaves it for spot.
    """
    cluster.put("laptop", "~/steady/steady.py", STEADY.read_text())
    words = f"--run {job} --storage {shared} --steps 2000 --step-s 0.2"
    terms = {"span": "any", "deadline": "13m"}
    cluster.submit("steady", f"python steady.py {words}", terms, job=job)


def pools_of(shared: Path) -> list[str]:
    """The pools in which groups of the steady job have started."""
    file = shared / "second" / "starts"
    told = file.read_text().splitlines() if file.exists() else []
    return [json.loads(line)["pool"] for line in told]


def assert_next_pool_was_asked_soon(launches: list[Launch]) -> None:
    """The zone without capacity was asked once, then the other within two ticks."""
    refused, got = launches
    assert (refused.zone, refused.got, got.zone, got.got) == (A, 0, B, 1)
    LOG.info("the next pool was asked %.2f s after a refusal", got.at - refused.at)
    assert got.at - refused.at <= 2 * TICK_S


def gone(cluster: BoxCluster, pool: str) -> dict[str, list[Events]] | None:
    """The hosts of all pools, once the one that a pool had is gone."""
    hosts = by_pool(cluster)
    (one,) = hosts[pool]
    return hosts if "gone" in one else None
