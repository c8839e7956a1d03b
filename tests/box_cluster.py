"""A user's machine, a head, machines on-prem and an object store in a box, for tests of `ray up`.

    with Box(folder) as box:
        cluster = BoxCluster(box, racks=2)
        cluster.put("laptop", "~/lab.yaml", cluster.fleet_file(text))
        cluster.laptop("rayburst fleet render lab.yaml --to ray-up > lab.ray.yaml")
        cluster.laptop("ray up -y lab.ray.yaml")
        cluster.tunnel()
        cluster.ended(cluster.submit("job", "python spread.py"))

Hosts of a box see this machine's files, so all of them use the tests' own Python: installing a
wheel on each would take minutes. `tests/integration/fleet/test_wheel.py` installs it.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support import wait_for

from rayburst.dev.cloud.box import Box, BoxHost
from rayburst.dev.cloud.box_store import start_store
from rayburst.fleet import processes

JOBS = Path(__file__).parents[1] / "jobs"
_TUNNELLED = "until (echo > /dev/tcp/127.0.0.1/8265) 2>/dev/null; do sleep 0.2; done; "
_LOOK = """
tail -n 40 ~/.rayburst/{fleet}/logs/*.log
rayburst events {fleet}; ray list nodes --limit 20 2>&1 | tail -n 25
grep -h -i "dead\\|drain\\|fail" /tmp/ray/session_latest/logs/gcs_server.out | tail -n 15 || true
"""


@dataclass
class BoxCluster:
    box: Box
    racks: int = 2
    fleet: str = "lab"
    hosts: dict[str, BoxHost] = field(default_factory=dict)
    jobs: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.store = start_store(self.box).server
        names = ["laptop", "head", *(f"rack-{n}" for n in range(1, self.racks + 1))]
        for name in names:
            self.hosts[name] = self.box.start_host(name, network="onprem")
        self._furnish_laptop()

    def replace_head(self) -> str:
        """Another machine for the head, which the user's fleet file names from now on; its IP."""
        self.hosts["head"] = self.box.start_host(f"head-{len(self.box.hosts)}", network="onprem")
        self.put("laptop", "~/.ssh/fleet_hosts", (self.box.folder / "known_hosts").read_text())
        # the tunnel to the lost one hangs and keeps its port
        self.on("laptop", "pkill -f 'L 8265:' || true")
        return self.hosts["head"].address

    def _furnish_laptop(self) -> None:
        """The user's keys, and what reaches the bucket."""
        self.put("laptop", "~/.ssh/fleet", (self.box.folder / "key").read_text())
        self.put("laptop", "~/.ssh/fleet_hosts", (self.box.folder / "known_hosts").read_text())
        keys = {k: v for k, v in self.store.environment().items() if k != "AWS_ENDPOINT_URL"}
        exports = "".join(f"export {key}={value}\n" for key, value in keys.items())
        profile = f'export PATH="{Path(sys.executable).parent}:$PATH"\n'
        self.put("laptop", "~/.profile", profile + exports)

    def put(self, host: str, path: str, text: str) -> None:
        """Write a file on a host, for its user only."""
        script = f"umask 077; mkdir -p $(dirname {path}); cat > {path}"
        self.box.run(self.hosts[host].ssh(script), input=text)

    def on(self, host: str, words: str, *, timeout_s: float = 60) -> str:
        """What a login shell on a host says to some words. Fails with all of it."""
        command = self.hosts[host].ssh("bash --login -s 2>&1")
        # in braces: ssh, which `ray up` runs, would read the rest of the script as its input
        script = f"set -e\n{{\n{words}\n}} < /dev/null\n"
        done = self.box.run(command, input=script, check=False, timeout=timeout_s)
        assert done.returncode == 0, f"{host}: {words}: {done.returncode}\n{done.stdout}"
        return str(done.stdout).strip()

    def laptop(self, words: str, *, timeout_s: float = 120) -> str:
        """The same on the user's machine."""
        return self.on("laptop", words, timeout_s=timeout_s)

    def on_head(self, words: str) -> str:
        """What the head says, with the fleet's environment."""
        mine = "unset RAYBURST_OWNER RAYBURST_HOST"  # what asks is no part of the fleet
        return self.on("head", f". ~/.rayburst/{self.fleet}/env; {mine}; {words}")

    def fleet_file(self, text: str) -> str:
        """A fleet file of the documentation for this box: addresses, Python, short times."""
        racks = [h.address for name, h in self.hosts.items() if name.startswith("rack-")]
        ours = {
            "10.0.0.7, 10.0.0.8": ", ".join(racks),
            "10.0.0.6": self.hosts["head"].address,
            "http://10.0.0.5:9000": self.store.endpoint,
            "user: ray": "user: root",
            "{idle_timeout: 5m, drain: 30s, join: 20m}": "{idle_timeout: 4s, drain: 10s}",
        }
        return replaced(text, ours) + f"software: {{python: {sys.executable}}}\n"

    def processes_on(self, host: str) -> list[str]:
        """Commands that run on a host, but for its sshd, what asks, and a user's own tunnel."""
        told = self.on(host, "ps -eo args --no-headers")
        own = ("sshd", "bash --login -s", "ps -eo", "host_init", "sleep 86400")
        return [line for line in told.splitlines() if not any(word in line for word in own)]

    def background(self, words: str, on: str = "laptop") -> subprocess.Popen[bytes]:
        """A command of a machine, the user's if none is named, that goes on until the box ends."""
        command = self.box.inside(self.hosts[on].ssh(f"bash --login -c '{words}'"))
        log = self.box.folder / "background.log"
        return processes.spawn(command, env=os.environ, log=log)

    def tunnel(self) -> None:
        """`ray dashboard`, from the user's machine to the head that there is now."""
        self.background(f"ray dashboard {self.fleet}.ray.yaml")

    def asking(self, words: str) -> str:
        """What Ray says to the user's machine through the tunnel."""
        return self.laptop(f'{_TUNNELLED}eval "$(rayburst env {self.fleet})"; {words}')

    def submit(
        self, folder: str, words: str, terms: Mapping[str, str] | None = None, *, job: str = ""
    ) -> str:
        """Submit a job by `ray job submit` from a folder of the user's machine; its id."""
        job = job or f"job-{len(self.jobs)}"
        self.jobs.append(job)
        given = f"--metadata-json {shlex.quote(json.dumps(terms))}" if terms else ""
        how = f"--no-wait --submission-id {job} --working-dir {folder} {given}"
        self.asking(f"ray job submit {how} -- {words}")
        return job

    def train(self, run: str, options: str, terms: Mapping[str, str] | None = None) -> str:
        """Submit `jobs/train_lm.py` with its smallest preset; its job."""
        self.put("laptop", "~/train/train_lm.py", (JOBS / "train_lm.py").read_text())
        words = f"python train_lm.py --preset micro --run {run} {options}"
        return self.submit("train", words, terms)

    def log_of(self, job: str) -> str:
        """What a job has said so far; a dashboard under load was seen to drop a connection."""
        return self.asking(f"for _ in 1 2 3; do ray job logs {job} && break; done")

    def ended(self, job: str, *, timeout_s: float = 120) -> str:
        """The log of a job, once it has succeeded."""

        def probe() -> bool | None:
            told = self.asking(f"ray job status {job} || true")
            assert not any(word in told for word in ("failed", "stopped")), self.log_of(job)
            return "succeeded" in told or None

        wait_for(probe, what=f"{job} to succeed", timeout_s=timeout_s)
        return self.log_of(job)

    @contextmanager
    def stopping_jobs(self) -> Iterator[None]:
        """What is submitted inside of this is stopped at its end."""
        earlier = len(self.jobs)
        try:
            yield
        finally:
            self.asking("".join(f"ray job stop {job} || true; " for job in self.jobs[earlier:]))

    def living(self) -> dict[str, str]:
        """Living hosts by their addresses, as the head knows them."""
        told = self.on_head(f"python -m rayburst.fleet.head hosts ~/.rayburst/{self.fleet}")
        return {host["address"]: host["id"] for host in json.loads(told.splitlines()[-1])}

    def events(self) -> list[dict[str, Any]]:
        """The node event log, the oldest first."""
        told = self.on_head(f"rayburst events {self.fleet} --json")
        return [json.loads(line) for line in told.splitlines() if line.startswith("{")]

    def event(self, kind: str, node: str) -> dict[str, Any] | None:
        return next((e for e in self.events() if (e["kind"], e["node"]) == (kind, node)), None)

    @contextmanager
    def explained(self) -> Iterator[None]:
        """A failure inside of this carries the ends of the logs that say why."""
        try:
            yield
        except Exception as error:
            error.add_note(self.logs())
            raise

    def logs(self) -> str:
        """The ends of the logs of head and racks, and of the last job."""
        told = self.on_head(_LOOK.format(fleet=self.fleet))
        for name, host in self.hosts.items():
            if name.startswith("rack-") and host.name in self.box.hosts:
                look = "tail -n 20 ~/.rayburst/hosts/*/*.log || true"
                told += f"\n--- {name}\n" + self.on(name, look)
        for job in self.jobs[-1:]:
            told += f"\n--- {job}\n" + self.log_of(job)[-4000:]
        return told


def replaced(text: str, words: Mapping[str, str]) -> str:
    """A text with other words. Fails for words that are not in it."""
    for there, here in words.items():
        assert there in text, f"{there} is not in the fleet file"
        text = text.replace(there, here)
    return text
