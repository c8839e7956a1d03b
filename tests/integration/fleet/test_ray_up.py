"""`ray up` of a fleet file with machines over SSH: head, hosts that come and go, nothing left."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from box_cluster import BoxCluster
from support import wait_for

from rayburst.dev.cloud.box import Box, why_not

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(why_not() is not None, reason=f"no box here: {why_not()}"),
    pytest.mark.skipif(shutil.which("rsync") is None, reason="`ray up` needs rsync"),
]
PAGE = Path(__file__).parents[3] / "docs" / "onprem.md"
SPREAD = """\
import ray
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy as Placed

@ray.remote(num_cpus=1)
def where():
    return ray.get_runtime_context().get_node_labels()["rayburst.io/host"]

ray.init(log_to_driver=False)
group = placement_group([{"CPU": 1}] * 2, strategy="STRICT_SPREAD")
ray.get(group.ready(), timeout=90)
placed = [Placed(group, placement_group_bundle_index=number) for number in range(2)]
print("ran on", *sorted(ray.get([where.options(scheduling_strategy=p).remote() for p in placed])))
"""


def block(language: str, start: str) -> str:
    """The block of the how-to that holds these words: what it says is what is run."""
    blocks = re.findall(rf"(?ms)^```{language}\n(.*?)^```$", PAGE.read_text())
    return next(text for text in blocks if start in text)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BoxCluster]:
    """A cluster that `ray up` brought up; `ray down` ends it and leaves nothing."""
    with Box(tmp_path_factory.mktemp("box")) as box:
        cluster = BoxCluster(box)
        cluster.put("laptop", "~/lab.yaml", cluster.fleet_file(block("yaml", "name: lab")))
        cluster.laptop(block("bash", "ray up"), timeout_s=180)
        cluster.background(block("text", "ray dashboard").partition("#")[0].strip())
        yield cluster
        cluster.laptop(block("bash", "ray down"), timeout_s=120)
        for host in ("head", "rack-1", "rack-2"):
            assert cluster.processes_on(host) == []
            assert "lease.json" not in cluster.on(host, "ls -A ~/.rayburst")


def living(cluster: BoxCluster) -> dict[str, str]:
    """Living hosts by their addresses, as the head knows them."""
    told = cluster.on("head", "python -m rayburst.fleet.head hosts ~/.rayburst/lab")
    return {host["address"]: host["id"] for host in json.loads(told.splitlines()[-1])}


def submit(cluster: BoxCluster, folder: str, words: str) -> str:
    """Submit a job from the user's machine through `ray dashboard`; its id."""
    job = f"job-{len(cluster.jobs)}"
    cluster.jobs.append(job)
    tunnel = "until (echo > /dev/tcp/127.0.0.1/8265) 2>/dev/null; do sleep 0.2; done; "
    command = block("bash", "ray job submit").replace(
        "--no-wait", f"--no-wait --submission-id {job}"
    )
    command = command.replace("python spread.py", words).replace("-dir job", f"-dir {folder}")
    cluster.laptop(tunnel + command)
    return job


def log_of(cluster: BoxCluster, job: str) -> str:
    return cluster.laptop(f'eval "$(rayburst env lab)"; ray job logs {job}')


def ended(cluster: BoxCluster, job: str, timeout_s: float = 120) -> str:
    """The log of a job that has succeeded."""

    def probe() -> bool | None:
        told = cluster.laptop(f'eval "$(rayburst env lab)"; ray job status {job}')
        assert not any(word in told for word in ("failed", "stopped")), log_of(cluster, job)
        return "succeeded" in told or None

    wait_for(probe, what=f"{job} to succeed", timeout_s=timeout_s)
    return log_of(cluster, job)


def events(cluster: BoxCluster) -> list[dict[str, Any]]:
    told = cluster.on("head", "rayburst events lab --json")
    return [json.loads(line) for line in told.splitlines() if line.startswith("{")]


def all_given_back(cluster: BoxCluster) -> None:
    wait_for(lambda: not living(cluster) or None, what="idle hosts to be given back", timeout_s=60)
    for rack in ("rack-1", "rack-2"):
        assert cluster.on(rack, "ls -A ~/.rayburst") == ""
        assert cluster.processes_on(rack) == []


def test_machines_join_when_there_is_work_and_leave_when_there_is_none(cluster: BoxCluster) -> None:
    assert living(cluster) == {}, "no host before there is work"
    cluster.put("laptop", "~/job/spread.py", SPREAD)
    said = ended(cluster, submit(cluster, "job", "python spread.py"))
    ran_on = next(line for line in said.splitlines() if line.startswith("ran on")).split()[2:]
    assert len(ran_on) == 2 and all(host.startswith("rack-") for host in ran_on)
    all_given_back(cluster)


def test_rays_own_commands_reach_the_head(cluster: BoxCluster) -> None:
    head = cluster.hosts["head"].address
    assert cluster.laptop("ray get-head-ip lab.ray.yaml").splitlines()[-1] == head
    cluster.put("laptop", "~/notes.txt", "carried along")
    cluster.laptop("ray rsync-up lab.ray.yaml notes.txt '~/notes.txt'")
    said = cluster.laptop("ray exec lab.ray.yaml 'hostname; cat ~/notes.txt'")
    assert "head" in said and "carried along" in said
    said = cluster.laptop(block("bash", "ray exec"))
    assert "fleet lab" in said and "node events" in said
