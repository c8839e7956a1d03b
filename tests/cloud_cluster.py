"""A cluster whose hosts are EC2 instances of a cloud in a box, for tests.

with cloud_cluster(folder, lab(pools)) as cluster:
    cluster.work("two", 2, SPOT)
    hosts = cluster.joined("two", 2)
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from box_cluster import BoxCluster, replaced
from support import wait_for

from rayburst.dev.cloud.cloud import Cloud, Instance
from rayburst.fleet.pools.ec2_instances import POOL, host_id
from rayburst.fleet.recorder import Tick, read_ticks

WORK = Path(__file__).parent / "integration" / "fleet" / "work.py"
ACTORS = WORK.with_name("actors.py")
HEAD_AND_LIMITS = """\
name: lab
object_store: {{uri: s3://fleet, endpoint: '{endpoint}'}}
limits: {{idle_timeout: 4s, drain: 10s, join: {join}}}
software: {{python: {python}}}
head: {{ssh: {{host: {head}, user: root, key: ~/.ssh/fleet, known_hosts: ~/.ssh/fleet_hosts}}}}
pools:
"""
_RUN_LOG = """python -c '
import json, os
from rayburst.checkpoint.store import ObjectStore
from rayburst.train import runlog
store = ObjectStore.open(os.environ["RAYBURST_STORE"])
print(json.dumps([r for r in runlog.read(store, "{run}") if r["kind"] in ("step", "committed")]))
'"""


FleetFile = Callable[[Cloud, BoxCluster], str]
"""The text of a fleet file for a cloud and its hosts on-prem."""


def ec2_pool(name: str, zone: str, *, price: float, market: str = "spot") -> str:
    """One pool of a fleet file: machines of one CPU in one zone, at most two."""
    return (
        f"  - {{name: {name}, kind: ec2, market: {market}, region: us-east-1, zone: {zone},\n"
        f"     shape: {{cpus: 1, memory: 1GiB}}, price: {price} USD/h, hosts: {{max: 2}},\n"
        f"     ec2: {{types: [m6i.large], image: AMI, subnets: [SUBNET-{zone}],\n"
        "           endpoint: 'EC2', rebalance: 10s}}\n"
    )


def lab(pools: str, *, join: str = "60s") -> FleetFile:
    """A small fleet with these pools (of `ec2_pool`), no machine on-prem but the head's."""

    def text(cloud: Cloud, at: BoxCluster) -> str:
        ours = {f"SUBNET-{zone}": subnet for zone, subnet in cloud.subnets.items()}
        ours |= {"AMI": cloud.ami, "EC2": cloud.endpoint}
        said = HEAD_AND_LIMITS.format(
            endpoint=at.store.endpoint,
            python=sys.executable,
            head=at.hosts["head"].address,
            join=join,
        )
        return said + replaced(pools, ours)

    return text


@contextmanager
def cloud_cluster(
    folder: Path, file: FleetFile, *, fleet: str = "lab", racks: int = 0
) -> Iterator[CloudCluster]:
    """A cluster of `ray up` in a cloud of two zones; `ray down` ends it and nothing is left."""
    shared = Path(tempfile.mkdtemp(dir="/var/tmp"))  # hosts have a /tmp of their own
    try:
        with Cloud(folder, zones=2) as cloud:
            cluster = CloudCluster(cloud, shared, BoxCluster(cloud.box, racks=racks, fleet=fleet))
            cluster.up(file)
            yield cluster
            cluster.down()
    finally:
        shutil.rmtree(shared)


def _pool_of(instance: Any) -> str:
    return next((tag["value"] for tag in instance.get_tags() if tag["key"] == POOL), "")


class CloudCluster:
    """A head and machines on-prem in the box of `cloud`, by `ray up`; and work.

    Attributes:
        at: the machines, and the user's.
        peak: how many instances each pool had at the most.
        shared: a folder that every host sees.
    """

    def __init__(self, cloud: Cloud, shared: Path, at: BoxCluster) -> None:
        self.cloud, self.shared, self.at = cloud, shared, at
        self.peak: Counter[str] = Counter()
        self._works: dict[str, Path] = {}  # the newest folder of each work
        keys = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
        cloud.image.update({key: at.store.environment()[key] for key in keys})
        self._followed = cloud.ec2.called
        cloud.ec2.called = self._called

    def up(self, file: FleetFile) -> None:
        """`ray up`, and the tunnel to it."""
        name = self.at.fleet
        self.at.put("laptop", f"~/{name}.yaml", file(self.cloud, self.at))
        self.at.laptop(f"rayburst fleet render {name}.yaml --to ray-up > {name}.ray.yaml")
        self.at.laptop(f"ray up -y --no-config-cache {name}.ray.yaml", timeout_s=180)
        self.at.tunnel()
        assert self.cloud.instances() == [] and self.at.living() == {}, "no host without work"

    def down(self) -> None:
        """`ray down`; nothing of the cluster is left anywhere."""
        self.at.laptop(f"ray down -y {self.at.fleet}.ray.yaml", timeout_s=120)
        for host in self.at.hosts.keys() - {"laptop"}:
            assert self.at.processes_on(host) == []
            assert "lease.json" not in self.at.on(host, "ls -A ~/.rayburst")
        assert self.cloud.instances() == []

    def all_given_back(self) -> None:
        """Wait until no host is left, each with one beginning and one end in the event log."""
        with self.explained():
            self.wait_until_empty(timeout_s=90)
            wait_for(lambda: not self.at.living() or None, what="the rack to be given back")
            wait_for(lambda: self._all_ended() or None, what="each node's end in the event log")
        assert all(most <= 2 for most in self.peak.values()), self.peak

    def _all_ended(self) -> bool:
        kinds = Counter((event["node"], event["kind"]) for event in self.at.events())
        assert not [one for one, count in kinds.items() if count > 1], "no node counts twice"
        nodes = {node for node, _ in kinds}
        return all((node, "requested") in kinds and (node, "gone") in kinds for node in nodes)

    def _called(self) -> None:
        self._count()
        self._followed()

    def _count(self) -> None:
        """How many instances of each pool there were at the most, after every call."""
        for pool, count in Counter(map(_pool_of, self.cloud.ec2.living())).items():
            self.peak[pool] = max(self.peak[pool], count)

    def hosts(self) -> dict[str, Instance]:
        """The instances that live, by the name of the host that each is."""
        backend = self.cloud.ec2.backend()
        found = {one.id: one for one in self.cloud.instances()}
        return {
            host_id(_pool_of(backend.get_instance(one)), one): instance
            for one, instance in found.items()
        }

    def monitor(self) -> psutil.Process | None:
        """The head's autoscaler, from outside."""
        for process in psutil.Process(self.cloud.box.pid()).children(recursive=True):
            with suppress(psutil.Error):
                if any(word.endswith("autoscaler/v2/monitor.py") for word in process.cmdline()):
                    return process
        return None

    def work(
        self, name: str, count: int, *labels: str, script: Path = WORK
    ) -> subprocess.Popen[bytes]:
        """Tasks (or actors) of one CPU that wait for `release(name)`, on hosts that they name."""
        folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.shared))
        self._works[name] = folder
        words = " ".join([str(script), str(folder / "release"), str(count), *labels])
        env = f". ~/.rayburst/{self.at.fleet}/env"
        command = f"{env}; python {words} > {folder}/said 2>&1"
        return self.at.background(command, on="head")

    def release(self, name: str) -> None:
        (self._works[name] / "release").touch()

    def release_all(self) -> None:
        for name in self._works:
            self.release(name)

    def running_on(self, name: str) -> set[str]:
        """The hosts on which tasks of some work have started."""
        found = self._works[name].glob("running-*")
        return {file.name.removeprefix("running-") for file in found}

    def joined(
        self, name: str, count: int, *, apart_from: Set[str] = frozenset(), timeout_s: float = 75
    ) -> set[str]:
        """Wait until so many tasks of some work have started on other hosts than these."""

        def found() -> set[str] | None:
            hosts = self.running_on(name) - apart_from
            return hosts if len(hosts) >= count else None

        return wait_for(found, what=f"{count} host(s) to run {name!r}", timeout_s=timeout_s)

    def ended(self, name: str) -> str:
        """Wait for the end of some work; what it said."""
        file = self._works[name] / "said"

        def told() -> str | None:
            text = file.read_text() if file.exists() else ""
            return text if "ran on" in text else None

        return wait_for(told, what=f"the end of {name!r}")

    def on_next_launch(self, do: Callable[[], object]) -> threading.Event:
        """Have something done while EC2's next answer to a launch is on its way."""
        done = threading.Event()
        before = len(self.launches())

        def look() -> None:
            if not done.is_set() and len(self.launches()) > before:
                done.set()
                do()
            self._called()

        self.cloud.ec2.called = look
        return done

    def run_log(self, run: str) -> list[dict[str, Any]]:
        """The steps and commits of a training run, in the order of their times."""
        told = self.at.on_head(_RUN_LOG.format(run=run))
        return list(json.loads(told.splitlines()[-1]))

    def ticks(self) -> list[Tick]:
        """What the planner saw and answered, from the head's log."""
        file = self.shared / "ticks.jsonl"
        told = self.at.on("head", f"cat ~/.rayburst/{self.at.fleet}/logs/ticks.jsonl")
        file.write_text("".join(f"{line}\n" for line in told.splitlines() if line.startswith("{")))
        return list(read_ticks(file))

    def wait_until_empty(self, *, timeout_s: float = 60) -> None:
        """Wait until the cloud has no instance left."""
        wait_for(
            lambda: not self.cloud.instances() or None, what="0 instances", timeout_s=timeout_s
        )

    @contextmanager
    def explained(self) -> Iterator[None]:
        """A failure inside of this carries the ends of the logs that say why."""
        try:
            yield
        except Exception as error:
            error.add_note(self._logs())
            raise

    def launches(self) -> list[float]:
        """When EC2 was asked for instances."""
        calls = zip(self.cloud.ec2.calls, self.cloud.ec2.called_at, strict=True)
        return [at for call, at in calls if call == "CreateFleet"]

    def _logs(self) -> str:
        told = self.at.logs()
        for file in sorted(self.shared.glob("*/said")):
            told += f"\n--- {file.parent.name}\n" + file.read_text(errors="replace")[-2000:]
        for file in sorted(self.cloud.box.folder.glob("*.user-data.log")):
            told += f"\n--- {file.name}\n" + file.read_text(errors="replace")[-1500:]
        return told
