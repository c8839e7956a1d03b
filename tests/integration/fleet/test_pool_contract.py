"""One contract for all kinds of pools: `rayburst.fleet.pools.base` says what each owes."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rayburst.dev.cloud.box import Box, why_not
from rayburst.dev.cloud.ec2_server import Ec2Server
from rayburst.errors import NodeNotFoundError, PoolError, SpecError
from rayburst.fleet.pools.base import Notice, Pool, PoolSite, pool_of
from rayburst.fleet.pools.ec2 import Ec2Pool
from rayburst.fleet.pools.ec2_api import Ec2Api
from rayburst.fleet.pools.fake import FakePool
from rayburst.fleet.pools.kinds import open_pool
from rayburst.fleet.pools.process import ProcessPool
from rayburst.fleet.pools.ssh import SshPool
from rayburst.fleet.spec import FleetSpec, PoolSpec

PAGE = Path(__file__).parents[3] / "docs" / "pools.md"
MOST = 2
Open = Callable[[str], Pool]


def entry(kind: str, name: str, more: str = "") -> PoolSpec:
    text = (
        "name: contract\nobject_store: {uri: s3://bucket}\npools:\n"
        f"  - {{name: {name}, kind: {kind}, market: spot, shape: {{cpus: 1, memory: 1GiB}},\n"
        f"     price: 0.5 USD/h, hosts: {{max: {MOST}}}{more}}}\n"
    )
    return FleetSpec.parse(text).pool(name)


@pytest.fixture
def site(tmp_path: Path) -> PoolSite:
    return PoolSite(fleet="contract", folder=tmp_path, subnet="127.9.9")


no_box = pytest.mark.skipif(why_not() is not None, reason=f"no box here: {why_not()}")


@pytest.fixture(params=["fake", "process", pytest.param("ssh", marks=no_box), "ec2", "slurm"])
def opened(request: pytest.FixtureRequest) -> Iterator[Open]:
    """Opens a pool by name, as another process would; all it started ends with the test."""
    opener: Open = request.getfixturevalue(request.param)
    yield opener
    for name in ("spot", "spot-a"):
        for host in opener(name).hosts():
            opener(name).terminate(host.id, why="the test ends")


@pytest.fixture
def fake() -> Open:
    world: dict[str, Pool] = {}
    return lambda name: world.setdefault(
        name, FakePool(entry("process", name), clock=lambda: 1_000.0)
    )


@pytest.fixture
def process(site: PoolSite) -> Open:
    waits = (sys.executable, "-c", "import time; time.sleep(600)")
    return lambda name: ProcessPool(
        entry("process", name), fleet_dir=site.folder, subnet=site.subnet, first_process=waits
    )


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    """A box with as many machines as the pools `spot` and `spot-a` have together."""
    with Box(tmp_path_factory.mktemp("box")) as box:
        for number in range(2 * MOST):
            box.start_host(f"m{number}", network="onprem")
        yield box


@pytest.fixture
def ssh(machines: Box, site: PoolSite) -> Open:
    def run(command: list[str], **how: Any) -> subprocess.CompletedProcess[str]:
        return machines.run(command, **{"check": False, **how})

    folder, hosts = machines.folder, sorted(one.address for one in machines.hosts.values())

    def open_ssh(name: str) -> Pool:
        mine = hosts[:MOST] if name == "spot" else hosts[MOST:]
        block = f"{{hosts: [{', '.join(mine)}], user: root, key: {folder}/key, "
        more = f", ssh: {block}known_hosts: {folder}/known_hosts}}"
        return SshPool(entry("ssh", name, more), site, run=run)

    return open_ssh


@pytest.fixture
def ec2(ec2_server: Ec2Server, ec2_block: str, site: PoolSite) -> Open:
    api = Ec2Api("contract", region="us-east-1", endpoint=ec2_server.url)
    more = f", region: us-east-1, ec2: {ec2_block}"
    return lambda name: Ec2Pool(entry("ec2", name, more), site, api=api)


FAKE_SLURM = {
    "sbatch": 'test -e "$(dirname "$0")/full" && { echo "no nodes" >&2; exit 1; }\n'
    'cd "$(dirname "$0")/jobs" && mktemp -p . job-XXXXXX | cut -c3-',
    "squeue": 'ls "$(dirname "$0")/jobs"',
    "scancel": 'rm -f "$(dirname "$0")/jobs/$1"',
}


@pytest.fixture
def slurm(site: PoolSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Open:
    """The package of docs/pools.md, found by its entry point, over a Slurm of three scripts."""
    commands = tmp_path / "bin"
    (commands / "jobs").mkdir(parents=True)
    for name, body in FAKE_SLURM.items():
        (commands / name).write_text(f"#!/bin/sh\n{body}\n")
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(commands), prepend=":")
    install_example(tmp_path / "site-packages", monkeypatch)
    options = f", options: {{script: {tmp_path}/join.sh}}"
    return lambda name: open_pool(entry("slurm", name, options), site)


def install_example(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = dict(re.findall(r"```(python|toml)\n(.*?)```", PAGE.read_text(), re.DOTALL))
    information = folder / "rayburst_slurm-1.dist-info"
    information.mkdir(parents=True)
    (folder / "rayburst_slurm.py").write_text(blocks["python"])
    (information / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: rayburst-slurm\nVersion: 1\n"
    )
    (point,) = re.findall(r'^(slurm) = "(.*)"$', blocks["toml"], re.MULTILINE)
    (information / "entry_points.txt").write_text("[rayburst.pools]\n{} = {}\n".format(*point))
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "rayburst_slurm", raising=False)


def notice(why: str) -> Notice:
    return Notice(given_at=10.0, deadline=40.0, why=why)


def test_the_interface_is_small() -> None:
    methods = [name for name in vars(Pool) if not name.startswith("_")]
    assert len(methods) < 10, methods


def test_a_launch_is_on_record_for_whoever_opens_the_pool(opened: Open) -> None:
    (host,) = opened("spot").launch(1, tags={"ray-launch-request": "r1"}, why="pending work")
    assert re.fullmatch(r"spot-[0-9a-z]+", host)
    assert pool_of(host) == "spot"
    (record,) = opened("spot").hosts()
    assert (record.id, record.pool, record.why) == (host, "spot", "pending work")
    assert record.lives
    assert record.tags["ray-launch-request"] == "r1"
    assert record.price_usd_per_hour == 0.5
    assert record.requested_at > 0


def test_tags_are_merged_and_kept(opened: Open) -> None:
    (host,) = opened("spot").launch(1, tags={"a": "1", "b": "2"}, why="x")
    opened("spot").tag(host, {"b": "3", "c": "4"})
    (record,) = opened("spot").hosts()
    assert {"a": "1", "b": "3", "c": "4"}.items() <= record.tags.items()
    with pytest.raises(NodeNotFoundError, match=host):
        opened("spot").tag("spot-ffff", {"a": "1"})


def test_a_pool_never_has_more_than_its_most(opened: Open) -> None:
    with pytest.raises(PoolError, match=f"at most {MOST}"):
        opened("spot").launch(MOST + 1, tags={}, why="x")
    assert opened("spot").hosts() == []
    hosts = opened("spot").launch(MOST, tags={}, why="x")
    with pytest.raises(PoolError, match=f"has {MOST}"):
        opened("spot").launch(1, tags={}, why="x")
    opened("spot").terminate(hosts[0], why="room")
    opened("spot").launch(1, tags={}, why="x")
    assert sum(host.lives for host in opened("spot").hosts()) == MOST


def test_callers_at_the_same_time_share_the_most(opened: Open) -> None:
    refused: list[PoolError] = []

    def ask() -> None:
        try:
            opened("spot").launch(1, tags={}, why="x")
        except PoolError as error:
            refused.append(error)

    threads = [threading.Thread(target=ask) for _ in range(MOST + 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 2
    assert sum(host.lives for host in opened("spot").hosts()) == MOST


def test_the_first_notice_stands(opened: Open) -> None:
    (host,) = opened("spot").launch(1, tags={}, why="x")
    opened("spot").notify(host, notice("first, and: 'odd' \"words\""))
    opened("spot").notify(host, notice("second"))
    assert opened("spot").hosts()[0].notice == notice("first, and: 'odd' \"words\"")
    with pytest.raises(NodeNotFoundError, match=host):
        opened("spot").notify("spot-ffff", notice("x"))


def test_an_end_is_seen_once_and_for_all(opened: Open) -> None:
    (host,) = opened("spot").launch(1, tags={}, why="x")
    opened("spot").forget(host)  # one that lives is not forgotten
    opened("spot").terminate(host, why="given back: idle")
    opened("spot").terminate(host, why="again")
    opened("spot").terminate("spot-ffff", why="nobody knows it")
    (record,) = opened("spot").hosts()
    assert not record.lives
    assert record.gone_why == "given back: idle"
    assert record.gone_at == opened("spot").hosts()[0].gone_at
    opened("spot").forget(host)
    assert opened("spot").hosts() == []


def test_a_pool_sees_its_own_hosts_only(opened: Open) -> None:
    (long,) = opened("spot-a").launch(1, tags={}, why="x")
    assert opened("spot").hosts() == []
    opened("spot").terminate(long, why="not its own")
    assert opened("spot-a").hosts()[0].lives


def test_an_example_host_whose_job_ended_is_gone(slurm: Open, tmp_path: Path) -> None:
    (host,) = slurm("spot").launch(1, tags={}, why="x")
    for job in (tmp_path / "bin" / "jobs").iterdir():
        job.unlink()
    (record,) = slurm("spot").hosts()
    assert (record.id, record.gone_why) == (host, "its Slurm job ended")


def test_an_example_launch_that_fails_leaves_nothing(slurm: Open, tmp_path: Path) -> None:
    (tmp_path / "bin" / "full").touch()
    with pytest.raises(PoolError, match="no nodes"):
        slurm("spot").launch(1, tags={}, why="x")
    assert slurm("spot").hosts() == []


def test_a_kind_that_no_package_has_is_refused_by_name() -> None:
    with pytest.raises(SpecError, match="the kinds of pools here are process, ssh, ec2"):
        entry("slurm", "spot")
