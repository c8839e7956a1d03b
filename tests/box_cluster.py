"""A user's machine, a head, machines on-prem and an object store in a box, for tests of `ray up`.

    with Box(folder) as box:
        cluster = BoxCluster(box, racks=2)
        cluster.put("laptop", "~/lab.yaml", cluster.fleet_file(text))
        cluster.laptop("rayburst fleet render lab.yaml --to ray-up > lab.ray.yaml")
        cluster.laptop("ray up -y lab.ray.yaml")

Hosts of a box see this machine's files, so all of them use the tests' own Python: installing a
wheel on each would take minutes. `tests/integration/fleet/test_wheel.py` installs it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from rayburst.dev.cloud.box import NETWORKS, Box, BoxHost
from rayburst.dev.objectstore import PORTS, S3Server
from rayburst.fleet import processes

BUCKET = "fleet"
ROUTER = f"{NETWORKS['onprem']}.1"
_MAKE_BUCKET = """
import sys
from pathlib import Path
from rayburst.dev.objectstore import S3Server
server = S3Server(Path(sys.argv[1]), address=sys.argv[2], ports=[int(p) for p in sys.argv[3:]])
server.wait_until_ready(lambda: "", timeout_s=60)
server.create_bucket("fleet")
"""


@dataclass
class BoxCluster:
    box: Box
    racks: int = 2
    hosts: dict[str, BoxHost] = field(default_factory=dict)
    jobs: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.store = self._start_store()
        names = ["laptop", "head", *(f"rack-{n}" for n in range(1, self.racks + 1))]
        for name in names:
            self.hosts[name] = self.box.start_host(name, network="onprem")
        self._furnish_laptop()

    def _start_store(self) -> S3Server:
        ports = processes.free_ports(PORTS)
        server = S3Server(self.box.folder / "store", address=ROUTER, ports=ports)
        server.write_config()
        env = {**os.environ, processes.OWNER_VARIABLE: str(self.box.folder)}
        log = self.box.folder / "store.log"
        processes.spawn(self.box.inside(server.command()), env=env, log=log)
        words = [str(server.folder), ROUTER, *map(str, ports)]
        self.box.run([sys.executable, "-c", _MAKE_BUCKET, *words], timeout=120)
        return server

    def replace_head(self) -> str:
        """Another machine for the head, which the user's fleet file names from now on; its IP."""
        self.hosts["head"] = self.box.start_host(f"head-{len(self.box.hosts)}", network="onprem")
        self.put("laptop", "~/.ssh/fleet_hosts", (self.box.folder / "known_hosts").read_text())
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
        script = f"set -e\n{words}\n"
        done = self.box.run(command, input=script, check=False, timeout=timeout_s)
        assert done.returncode == 0, f"{host}: {words}: {done.returncode}\n{done.stdout}"
        return str(done.stdout).strip()

    def laptop(self, words: str, *, timeout_s: float = 120) -> str:
        """The same on the user's machine."""
        return self.on("laptop", words, timeout_s=timeout_s)

    def fleet_file(self, text: str) -> str:
        """A fleet file of the documentation for this box: addresses, Python, short times."""
        racks = [h.address for name, h in self.hosts.items() if name.startswith("rack-")]
        for there, here in {
            "10.0.0.7, 10.0.0.8": ", ".join(racks),
            "10.0.0.6": self.hosts["head"].address,
            "http://10.0.0.5:9000": self.store.endpoint,
            "user: ray": "user: root",
            "{idle_timeout: 5m, drain: 30s, join: 20m}": "{idle_timeout: 4s, drain: 10s}",
        }.items():
            assert there in text, f"{there} is not in the fleet file"
            text = text.replace(there, here)
        return f"{text}software: {{python: {sys.executable}}}\n"

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
