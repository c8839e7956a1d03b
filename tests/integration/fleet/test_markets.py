"""Nodes come and go on Ray's demand: on-prem first, then spot, on-demand when named; on record."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import wait_for

from rayburst.errors import FleetExistsError, JobError, NodeNotFoundError, PoolError
from rayburst.fleet.layout import user_environment
from rayburst.fleet.pools import open_pools

WORK = Path(__file__).with_name("work.py")
GANG = Path(__file__).with_name("gang.py")
BIN = Path(sys.executable).parent
pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def submit(platform):
    """Submit work that holds nodes; what still runs at the end of a test is stopped."""
    jobs = []

    def go(release: Path, count: int, *labels: str):
        words = " ".join(map(str, (WORK, release, count, *labels)))
        jobs.append(platform.submit(f"python {words}", working_dir=None))
        return jobs[-1]

    yield go
    for job in jobs:
        job.stop()


def up_nodes(platform, *pools: str):
    """The living nodes once exactly these pools have one that is up."""

    def probe():
        nodes = [n for n in platform.fleet().nodes if n.state == "up"]
        return nodes if sorted(n.pool for n in nodes) == sorted(pools) else None

    return wait_for(probe, what=f"nodes of {pools}")


def gone(platform, node: str) -> str:
    def probe():
        ends = [e.why for e in platform.events() if e.node == node and e.kind == "gone"]
        return ends[0] if ends else None

    return wait_for(probe, what=f"{node} to be on record as gone")


def test_work_fills_on_prem_then_spot_is_interrupted_and_everything_is_given_back(
    platform, submit, tmp_path
):
    release = tmp_path / "release"
    job = submit(release, 3)
    nodes = {n.pool: n.node for n in up_nodes(platform, "rack", "spot-a")}
    # an empty node that is drained leaves at once, a busy one stays until its deadline
    marks = [tmp_path / f"running-{node}" for node in nodes.values()]
    wait_for(lambda: all(mark.exists() for mark in marks) or None, what="work on both")
    wait_for(lambda: "pending: 1 x {CPU: 1}" in str(platform.fleet()) or None, what="one to wait")
    assert "cloud" not in nodes, "on-demand is only for those who name it"

    platform.interrupt(nodes["spot-a"], notice_s=6, why="spot reclaim")
    assert "spot reclaim" in gone(platform, nodes["spot-a"])
    second = {n.pool: n.node for n in up_nodes(platform, "rack", "spot-a")}["spot-a"]
    platform.interrupt(second, notice_s=0, why="cable")
    assert gone(platform, second) == "power cut: cable"

    release.touch()
    assert job.wait(timeout_s=120) == "SUCCEEDED"
    assert "ran on" in job.logs()
    assert "idle for" in gone(platform, nodes["rack"])

    events = platform.events()
    kinds = {e.node: [] for e in events}
    for event in events:
        kinds[event.node].append(event.kind)
    assert kinds[nodes["rack"]] == ["requested", "up", "gone"]
    assert kinds[nodes["spot-a"]] == ["requested", "up", "notice", "draining", "gone"]
    assert kinds[second] == ["requested", "up", "gone"]
    taken = {e.kind: e for e in events if e.node == nodes["spot-a"]}
    assert taken["draining"].t - taken["notice"].t < 5
    assert taken["gone"].t >= taken["notice"].deadline
    asked_for = [e.pool for e in events if e.kind == "requested"]
    assert sorted(asked_for[:2]) == ["rack", "spot-a"]
    assert "cloud" not in asked_for
    bill = platform.cost()
    assert bill.usd_is_complete and 0 < bill.usd < bill.usd_if_on_demand


def test_the_first_host_of_a_gang_waits_for_its_last_longer_than_idle_hosts_do(
    platform, fleet, submit, tmp_path
):
    release, placed = tmp_path / "release", tmp_path / "placed"
    submit(release, 1, "rayburst.io/market=spot")
    wait_for(lambda: list(tmp_path.glob("running-spot-a-*")) or None, what="work on spot")
    gang = platform.submit(f"python {GANG} {placed}", working_dir=None)
    first = {n.pool: n.node for n in up_nodes(platform, "rack", "spot-a")}["rack"]
    longer = fleet.spec().limits.idle_timeout_s + 4

    def waited():
        assert first in [n.node for n in platform.fleet().nodes], "it was given back"
        up = [e.t for e in platform.events() if e.node == first and e.kind == "up"]
        return (up and time.time() > up[0] + longer) or None

    wait_for(waited, what="the gang's host to be idle for longer than others may")
    assert not placed.exists()
    release.touch()  # the only other host is free now
    assert gang.wait(timeout_s=60) == "SUCCEEDED"
    assert placed.exists()
    assert "idle for" in gone(platform, first), "nobody waits with it any more"


def test_on_demand_comes_when_a_label_names_it(submit, tmp_path):
    release = tmp_path / "release"
    release.touch()
    job = submit(release, 1, "rayburst.io/market=on-demand")
    assert job.wait(timeout_s=120) == "SUCCEEDED"
    assert "ran on ['cloud-" in job.logs()


def test_a_pool_never_exceeds_its_hosts(platform, fleet):
    pool = open_pools(fleet)["rack"]
    before = {host.id for host in pool.hosts()}
    with pytest.raises(PoolError, match=r"at most 1.*max"):
        pool.launch(2, tags={}, why="too many")
    assert {host.id for host in pool.hosts()} <= before


def test_a_second_up_of_the_same_name_is_refused(fleet, tmp_path):
    from rayburst.dev.embedded import up

    with pytest.raises(FleetExistsError, match="rayburst down it"):
        up(fleet.path / "fleet.yaml", root=fleet.path.parents[1])


def test_an_unknown_node_lists_the_known(platform):
    with pytest.raises(NodeNotFoundError, match="living nodes: "):
        platform.interrupt("spot-z-0000")


def ray_cli(fleet, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **user_environment(fleet, fleet.read_state())}
    return subprocess.run(
        [str(BIN / words[0]), *words[1:]],
        env=env,
        capture_output=True,
        text=True,
        check=check,
        timeout=240,
    )


def test_rays_own_commands_work(fleet):
    command = [sys.executable, "-c", "print(6*7); import time; time.sleep(600)"]
    ray_cli(
        fleet, "ray", "job", "submit", "--no-wait", "--submission-id", "cli-job", "--", *command
    )

    def printed():
        logs = ray_cli(fleet, "ray", "job", "logs", "cli-job", check=False).stdout
        return True if "42" in logs else None

    wait_for(printed, what="the job's output")
    assert "cli-job" in ray_cli(fleet, "ray", "job", "list").stdout
    ray_cli(fleet, "ray", "job", "stop", "cli-job")
    assert "was stopped" in ray_cli(fleet, "ray", "job", "status", "cli-job").stdout
    assert "Autoscaler status" in ray_cli(fleet, "ray", "status").stdout
    assert ray_cli(fleet, "serve", "status").returncode == 0


def test_without_the_token_nobody_gets_in(fleet):
    import requests

    reply = requests.get(f"{fleet.read_state().dashboard_url}/api/jobs/", timeout=10)
    assert reply.status_code == 401
    assert fleet.token_file.stat().st_mode & 0o077 == 0


def test_a_job_that_does_not_exist_and_one_that_raises_end_with_their_words(platform):
    missing = platform.submit("python no_such_file.py", working_dir=None)
    with pytest.raises(JobError, match="No such file"):
        missing.wait(timeout_s=120)
    raising = platform.submit("python -c \"raise ValueError('seven')\"", working_dir=None)
    with pytest.raises(JobError, match="ValueError: seven"):
        raising.wait(timeout_s=120)
    with pytest.raises(JobError, match="nope"):
        platform.job("nope")
    with pytest.raises(JobError, match="working_dir"):
        platform.submit("true", working_dir="/no/such/folder")


def test_an_unmodified_ray_train_example_runs(fleet, tmp_path):
    import ray.train.examples.pytorch.torch_linear_example as example

    environment = {"env_vars": {"HOME": str(tmp_path)}}  # it writes its results to the home folder
    done = ray_cli(
        fleet,
        *("ray", "job", "submit", "--runtime-env-json", json.dumps(environment), "--"),
        *("python", example.__file__, "--num-workers", "2"),
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert "succeeded" in done.stdout
    assert list(tmp_path.rglob("model.pt"))


def test_a_notice_of_ec2s_metadata_service_drains_a_node_of_any_ray_cluster(
    fleet, platform, submit, imds, tmp_path
):
    release = tmp_path / "release"
    submit(release, 1, "rayburst.io/market=on-demand")
    wait_for(lambda: list(tmp_path.glob("running-cloud-*")) or None, what="work on a node")
    (node,) = (n for n in platform.fleet().nodes if n.pool == "cloud" and n.state == "up")
    words = ["rayburst", "watch", "--address", fleet.read_state().gcs_address]
    words += ["--node-ip", node.address, "--imds", imds.url, "--rebalance", "900"]
    env = {**os.environ, **user_environment(fleet, fleet.read_state()), "PYTHONUNBUFFERED": "1"}
    said = tmp_path / "watch.log"
    with said.open("wb") as out:
        watcher = subprocess.Popen([str(BIN / words[0]), *words[1:]], env=env, stdout=out)
    try:
        wait_for(lambda: "watches" in said.read_text() or None, what="the watcher")
        imds.recommend_rebalance(at=time.time())
        wait_for(
            lambda: (
                any(e.node == node.node and e.kind == "draining" for e in platform.events()) or None
            ),
            what="the drain on record",
        )
        imds.give_notice(deadline=time.time() + 600)
        wait_for(
            lambda: said.read_text().count("Ray drains it") == 2 or None,
            what="another drain, with the nearer deadline",
        )
        assert "EC2 takes the spot instance back (terminate)" in said.read_text()
    finally:
        watcher.terminate()
        watcher.wait()
    platform.interrupt(node.node, notice_s=0, why="the end of the test")
    release.touch()
