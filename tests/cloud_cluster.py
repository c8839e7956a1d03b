"""A cluster whose hosts are EC2 instances of a cloud in a box, for tests."""

from __future__ import annotations

import json
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
from box_cluster import BoxCluster
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
RACK = """\
  - {{name: rack, kind: ssh, market: on-prem, shape: {{cpus: 1, memory: 1GiB}}, price: 0.01 USD/h,
     hosts: {{max: 1}}, ssh: {{hosts: [{rack}], user: root, key: ~/.ssh/fleet,
     known_hosts: ~/.ssh/fleet_hosts}}}}
"""
ENV = ". ~/.rayburst/lab/env; "
_RUN_LOG = """python -c '
import json, os
from rayburst.checkpoint.store import ObjectStore
from rayburst.train import runlog
store = ObjectStore.open(os.environ["RAYBURST_STORE"])
print(json.dumps([r for r in runlog.read(store, "{run}") if r["kind"] in ("step", "committed")]))
'"""


def ec2_pool(cloud: Cloud, name: str, zone: str, *, price: float, market: str = "spot") -> str:
    """One pool of a fleet file: machines of one CPU in one zone, at most two."""
    return (
        f"  - {{{{name: {name}, kind: ec2, market: {market}, region: us-east-1, zone: {zone},\n"
        f"     shape: {{{{cpus: 1, memory: 1GiB}}}}, price: {price} USD/h, hosts: {{{{max: 2}}}},\n"
        f"     ec2: {{{{types: [m6i.large], image: {cloud.ami}, subnets: [{cloud.subnets[zone]}],\n"
        f"           endpoint: '{cloud.endpoint}', rebalance: 10s}}}}}}}}\n"
    )


def _pool_of(instance: Any) -> str:
    return next((tag["value"] for tag in instance.get_tags() if tag["key"] == POOL), "")


class CloudCluster:
    """A head, and one machine on-prem or none, in the box of `cloud`, by `ray up`; and work."""

    def __init__(
        self, cloud: Cloud, pools: str, shared: Path, *, join: str = "60s", racks: int = 1
    ) -> None:
        self.cloud = cloud
        self.peak: Counter[str] = Counter()
        self._works: dict[str, Path] = {}  # the newest folder of each work
        self.shared = shared  # a folder that every host sees
        self.at = BoxCluster(cloud.box, racks=racks)
        keys = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
        cloud.image.update({key: self.at.store.environment()[key] for key in keys})
        text = (HEAD_AND_LIMITS + RACK * racks + pools).format(
            endpoint=self.at.store.endpoint,
            python=sys.executable,
            head=self.at.hosts["head"].address,
            rack=self.at.hosts["rack-1"].address if racks else "",
            join=join,
        )
        self._followed = cloud.ec2.called
        cloud.ec2.called = self._called
        self.at.put("laptop", "~/lab.yaml", text)
        self.at.laptop("rayburst fleet render lab.yaml --to ray-up > lab.ray.yaml")
        self.at.laptop("ray up -y --no-config-cache lab.ray.yaml", timeout_s=180)
        self.at.tunnel()

    def down(self) -> None:
        """`ray down`; nothing of the cluster is left anywhere."""
        self.at.laptop("ray down -y lab.ray.yaml", timeout_s=120)
        for host in self.at.hosts.keys() - {"laptop"}:
            assert self.at.processes_on(host) == []
            assert "lease.json" not in self.at.on(host, "ls -A ~/.rayburst")
        assert self.cloud.instances() == []

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
        command = f"{ENV} python {words} > {folder}/said 2>&1"
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

    def events(self) -> list[dict[str, Any]]:
        """The node event log."""
        told = self.at.on("head", f"cd; {ENV} rayburst events lab --json")
        return [json.loads(line) for line in told.splitlines() if line.startswith("{")]

    def run_log(self, run: str) -> list[dict[str, Any]]:
        """The steps and commits of a training run, in the order of their times."""
        told = self.at.on_head(_RUN_LOG.format(run=run))
        return list(json.loads(told.splitlines()[-1]))

    def ticks(self) -> list[Tick]:
        """What the planner saw and answered, from the head's log."""
        file = self.shared / "ticks.jsonl"
        told = self.at.on("head", "cat ~/.rayburst/lab/logs/ticks.jsonl")
        file.write_text("".join(f"{line}\n" for line in told.splitlines() if line.startswith("{")))
        return list(read_ticks(file))

    def event(self, kind: str, node: str) -> dict[str, Any] | None:
        return next((e for e in self.events() if (e["kind"], e["node"]) == (kind, node)), None)

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
