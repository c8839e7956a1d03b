"""`ray up` of a fleet file with machines over SSH: head, hosts that come and go, nothing left."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

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


def all_given_back(cluster: BoxCluster) -> None:
    wait_for(lambda: not cluster.living() or None, what="idle hosts to be given back", timeout_s=60)
    for rack in ("rack-1", "rack-2"):
        assert cluster.on(rack, "ls -A ~/.rayburst") == ""
        assert cluster.processes_on(rack) == []


def trains_with(cluster: BoxCluster, job: str, workers: int) -> None:
    def told() -> bool | None:
        return f"world {workers}" in cluster.log_of(job) or None

    wait_for(told, what=f"{job} to train with {workers}", timeout_s=180)


def test_machines_join_when_there_is_work_and_leave_when_there_is_none(cluster: BoxCluster) -> None:
    assert cluster.living() == {}, "no host before there is work"
    cluster.put("laptop", "~/job/spread.py", SPREAD)
    submitted = cluster.asking(block("bash", "ray job submit"))
    said = cluster.ended(re.findall(r"raysubmit_\w+", submitted)[0])
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


@pytest.mark.soak
def test_an_owner_takes_a_machine_and_training_goes_on_without_it(cluster: BoxCluster) -> None:
    with cluster.explained():
        job = cluster.train("first", "--workers 1:2 --steps 3000")
        trains_with(cluster, job, 2)
        address, node = next(iter(cluster.living().items()))
        rack = next(name for name, host in cluster.hosts.items() if host.address == address)
        reclaim = "echo 20 > ~/.rayburst/reclaim; stat -c %.9Y ~/.rayburst/reclaim"
        written = float(cluster.on(rack, reclaim))
        trains_with(cluster, job, 1)
        noticed, drained = cluster.event("notice", node), cluster.event("draining", node)
        assert noticed is not None and drained is not None
        assert noticed["deadline"] == pytest.approx(written + 20, abs=0.01)
        assert drained["why"] == "its owner wants it back"
        assert drained["t"] - written <= 2.0
        wait_for(lambda: address not in cluster.living() or None, what="the machine to go")
        assert cluster.processes_on(rack) == []
        log = cluster.log_of(job)
        assert "training with 1 worker from step" in log
        assert "steps again" not in log, "it had notice and lost no step"
        cluster.asking(f"ray job stop {job}")
        cluster.on(rack, "rm ~/.rayburst/reclaim")
        all_given_back(cluster)


@pytest.mark.soak
def test_the_autoscaler_is_killed_while_machines_are_launched(cluster: BoxCluster) -> None:
    cluster.put("laptop", "~/job/spread.py", SPREAD)
    before = {event["node"] for event in cluster.events()}
    with cluster.explained():
        job = cluster.submit("job", "python spread.py")
        wait_for(lambda: cluster.living() or None, what="a launch", timeout_s=60)
        find = "pgrep -f autoscaler/v2/monitor.py"
        killed = cluster.on("head", find)
        cluster.on("head", f"kill -KILL {killed}")
        said = cluster.ended(job)
        assert cluster.on("head", find) != killed, "the agent has started another"
        ran_on = set(re.findall(r"rack-\w+", said.partition("ran on")[2]))
        assert len(ran_on) == 2
        used = {event["node"] for event in cluster.events()} - before
        assert used == ran_on, "no machine was taken twice"
        all_given_back(cluster)


@pytest.mark.timeout(500)
def test_a_lost_head_comes_back_elsewhere_and_training_goes_on(cluster: BoxCluster) -> None:
    lost = cluster.hosts["head"]

    def steps(job: str) -> list[int]:
        """What a job has told of checkpoints."""
        return [int(step) for step in re.findall(r"/rayburst-0*(\d+)\)", cluster.log_of(job))]

    with cluster.explained(), cluster.stopping_jobs():
        job = cluster.train("second", "--workers 1:2 --steps 3000 --checkpoint-every 2")
        trains_with(cluster, job, 2)
        saved = max(wait_for(lambda: steps(job) or None, what="a checkpoint"))
        cluster.box.cut_power(lost.name)
        address = cluster.replace_head()
        cluster.laptop(f"sed -i s/{lost.address}/{address}/ lab.yaml")
        told = cluster.laptop(block("text", "--recover"), timeout_s=180)
        assert f"submitted {job} again" in told and "gave back rack-" in told
        cluster.tunnel()
        trains_with(cluster, job, 2)
        (resumed,) = re.findall(r"training with 2 workers from step (\d+)", cluster.log_of(job))
        assert int(resumed) >= saved
        lost_nodes = [e["node"] for e in cluster.events() if e["why"] == "lost with its head"]
        assert len(lost_nodes) == len(set(lost_nodes)) == 2, "nobody pays for what only it knew"
    all_given_back(cluster)
