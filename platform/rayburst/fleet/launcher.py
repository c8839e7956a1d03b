"""The user's half of `ray up`: finds, takes and gives back the machine of the head, over SSH.

Named as the external provider in what `rayburst fleet render --to ray-up` prints; `ray up`, `ray
down`, `ray exec` and their kin build one on the user's machine. Everything about hosts is asked of
the head and left to it. The head is leased as any machine of a fleet (`pools.ssh_host`), and its
tags lie beside its lease, so that every machine of a user finds it. On the head itself the
autoscaler has `provider.HybridNodeProvider`.

Building one writes the fleet's ship (`ship.pack`), which Ray reads next, and starts nothing.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ray.autoscaler.node_provider import NodeProvider
from ray.autoscaler.tags import NODE_KIND_HEAD, NODE_KIND_WORKER, TAG_RAY_NODE_KIND

from rayburst.errors import FleetExistsError, SpecError
from rayburst.fleet.cluster import head_of
from rayburst.fleet.kindspec import SshSpec
from rayburst.fleet.pools.ssh_host import Lease, Run, SshMachine
from rayburst.fleet.ship import home_of, pack
from rayburst.fleet.spec import HEAD, FleetSpec

_DOWN_S = 180.0


class ClusterLauncher(NodeProvider):  # type: ignore[misc]  # Ray ships no annotations for it
    """Node ids are `head` and the ids of hosts."""

    def __init__(
        self, provider_config: dict[str, Any], cluster_name: str, *, run: Run = subprocess.run
    ) -> None:
        super().__init__(provider_config, cluster_name)
        text = provider_config["fleet"]
        self._spec = FleetSpec.parse(text, source=f"the fleet file of {cluster_name}")
        self._at = head_of(self._spec)
        self._machine = _machine(self._spec, run)
        self._home = home_of(self._spec.name)
        self._tags: dict[str, str] = {}
        self._hosts: dict[str, dict[str, Any]] = {}
        _need_files(self._spec)
        pack(self._spec.name, text, home=Path.home(), environment=os.environ)

    def non_terminated_nodes(self, tag_filters: dict[str, str]) -> list[str]:
        wanted = tag_filters.items()
        kind = tag_filters.get(TAG_RAY_NODE_KIND)
        found = self._head() if kind in (None, NODE_KIND_HEAD) else {}
        if kind in (None, NODE_KIND_WORKER):
            found = found | {host: one["tags"] for host, one in self._ask_hosts().items()}
        return [node for node, tags in found.items() if wanted <= tags.items()]

    def is_running(self, node_id: str) -> bool:
        return not self.is_terminated(node_id)

    def is_terminated(self, node_id: str) -> bool:
        return node_id not in (self._head() if node_id == HEAD else self._ask_hosts())

    def node_tags(self, node_id: str) -> dict[str, str]:
        if node_id == HEAD:
            return dict(self._tags or self._head().get(HEAD, {}))
        return dict(self._hosts.get(node_id, {}).get("tags", {}))

    def internal_ip(self, node_id: str) -> str:
        return self._at.ip if node_id == HEAD else str(self._hosts[node_id]["address"])

    def external_ip(self, node_id: str) -> str:
        return self._at.host if node_id == HEAD else str(self._hosts[node_id]["address"])

    def create_node(
        self, node_config: dict[str, Any], tags: dict[str, str], count: int
    ) -> dict[str, Any]:
        """Take the machine of the head. Raises FleetExistsError when somebody has it."""
        mine = Lease(fleet=self._spec.name, host=HEAD, at=time.time())
        seen = self._machine.take(mine)
        if seen.lease is None:
            raise FleetExistsError(f"the owner of {self._at.host} wants it back; it is not taken")
        if (seen.lease.fleet, seen.lease.host) != (mine.fleet, mine.host):
            raise FleetExistsError(
                f"{self._at.host} is {seen.lease.host!r} of fleet {seen.lease.fleet!r}: see "
                f"~/.rayburst/lease.json there, and name another in head: {{ssh: {{host: ...}}}}"
            )
        self.set_node_tags(HEAD, tags)
        return {HEAD: {}}

    def set_node_tags(self, node_id: str, tags: dict[str, str]) -> None:
        if node_id == HEAD:
            self._tags = {**self.node_tags(HEAD), **tags}
            self._machine.do(_WRITE_TAGS.format(home=self._home), json.dumps(self._tags))

    def terminate_node(self, node_id: str) -> None:
        self.terminate_nodes([node_id])

    def terminate_nodes(self, node_ids: list[str]) -> None:
        if HEAD in node_ids:
            self._on_head("down", (), timeout_s=_DOWN_S)
            self._machine.do(_REMOVE_TAGS.format(home=self._home))
            # `down` ended what is this fleet's; heads of others on the machine have the same name
            self._machine.vacate(HEAD)
            self._tags = {}
        else:
            self._on_head("end", node_ids, timeout_s=_DOWN_S)

    def runs(self) -> bool:
        """Whether the agent on the head lives and reaches Ray's head."""
        return self._machine.do(_RUNS.format(home=self._home)).strip() == "runs"

    def recover(self) -> list[str]:
        """Have a new head go on where a lost one stopped; what it did, line by line."""
        return self._on_head("recover", (), timeout_s=_DOWN_S).splitlines()

    def _head(self) -> dict[str, dict[str, str]]:
        lease = self._machine.look().lease
        if lease is None or (lease.fleet, lease.host) != (self._spec.name, HEAD):
            return {}
        self._tags = json.loads(self._machine.do(f"cat {self._home}/tags.json || echo '{{}}'\n"))
        return {HEAD: self._tags}

    def _ask_hosts(self) -> dict[str, dict[str, Any]]:
        told = json.loads(self._on_head("hosts", (), timeout_s=60.0) or "[]")
        self._hosts = {host["id"]: host for host in told}
        return self._hosts

    def _on_head(self, verb: str, words: Iterable[str], *, timeout_s: float) -> str:
        """Run a verb of `fleet.head` there; nothing where the head was never set up."""
        script = _VERB.format(home=self._home, python=self._spec.software.python, verb=verb)
        return self._machine.do(script, *words, timeout_s=timeout_s)


_WRITE_TAGS = """
umask 077; mkdir -p {home} && cd {home} || exit 9
printf '%s' "$1" > tags.new && mv tags.new tags.json
"""
_REMOVE_TAGS = "rm -f {home}/tags.json\n"
_RUNS = """
cd {home} 2>/dev/null && grep -qs '"head_answers": true' agent.json || exit 0
[ $(( $(date +%s) - $(stat -c %Y agent.json) )) -gt 30 ] || echo runs
"""
_VERB = """
test -e {home}/state.json && test -x {python} || exit 0
test -e {home}/env && . {home}/env && unset RAYBURST_OWNER RAYBURST_HOST
exec {python} -m rayburst.fleet.head {verb} {home} "$@"
"""


def _machine(spec: FleetSpec, run: Run) -> SshMachine:
    head = head_of(spec)
    ssh = SshSpec(hosts=(head.host,), user=head.user, key=head.key, known_hosts=head.known_hosts)
    return SshMachine(head.host, ssh, run=run)


def _need_files(spec: FleetSpec) -> None:
    """Raise SpecError when a key that `ray up` is to carry is not here."""
    blocks = [spec.head.ssh, *(pool.ssh for pool in spec.pools)]
    for block in blocks:
        for file in (block.key, block.known_hosts) if block is not None else ():
            if file is not None and not Path(file).expanduser().exists():
                raise SpecError(f"{file} of the fleet file is not on this machine; it is needed")
