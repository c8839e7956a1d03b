"""From the fleet file to what `ray up` takes. Pure.

    cluster_yaml(spec, text)                # > cluster.yaml; ray up cluster.yaml

`ray up` makes the head on the machine that `head.ssh` names: it carries the fleet's ship there (see
`ship`), runs the commands of `software`, starts Ray with the token, then the agent. Hosts join when
the agent's caps let the autoscaler ask for them; their pools bring them up, not Ray's updaters.
Deliberately does not know: what runs.
"""

from __future__ import annotations

import shlex
from pathlib import PurePosixPath
from typing import Any

import yaml

from rayburst.errors import SpecError
from rayburst.fleet.connections import system_config
from rayburst.fleet.kindspec import HeadSshSpec
from rayburst.fleet.render import HEAD_TYPE, ray_config
from rayburst.fleet.ship import home_of
from rayburst.fleet.spec import FleetSpec

LAUNCHER = "rayburst.fleet.launcher.ClusterLauncher"
GCS_PORT = 6379
PORTS = {
    "gcs": GCS_PORT,
    "dashboard": 8265,
    "dashboard_agent": 52365,
    "client": 10001,
    "serve": 8000,
    "metrics": 44217,
    "books": 44218,
}
"""Ports of the head by role: Ray's own defaults, and one for rayburst's metrics."""


def cluster_config(spec: FleetSpec, text: str) -> dict[str, Any]:
    """The cluster config of `ray up` for a fleet file and its text.

    Raises:
        SpecError: the file names no machine for the head, or has hosts that are of this machine.
    """
    head = head_of(spec)
    home = home_of(spec.name)
    config = ray_config(spec)
    config["available_node_types"][HEAD_TYPE]["labels"] = {"rayburst.io/pool": HEAD_TYPE}
    config["provider"] = {
        "type": "external",
        "module": LAUNCHER,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
        "fleet": text,
    }
    config["auth"] = {"ssh_user": head.user}
    if head.key is not None:
        config["auth"]["ssh_private_key"] = head.key
    config["file_mounts"] = {f"{home}/ship": f"{home}/ship"} | {
        file: file for file in _keys_of_hosts(spec)
    }
    config["head_setup_commands"] = [
        f"export RAYBURST_SHIP={home}/ship; {command}" for command in spec.software.commands
    ]
    config["head_start_ray_commands"] = [
        f"{spec.software.python} -m rayburst.fleet.head prepare {home}",
        f". {home}/env && {_start(spec, head)}",
        f"{spec.software.python} -m rayburst.fleet.head start {home}",
    ]
    return config


def head_of(spec: FleetSpec) -> HeadSshSpec:
    """Where `ray up` makes the head. Raises SpecError when it cannot."""
    if spec.head.ssh is None:
        raise SpecError(
            f"fleet {spec.name!r} names no machine for its head, so `rayburst up` starts it on "
            f"this one; for `ray up` write  head: {{ssh: {{host: 10.0.0.6, user: ray}}}}"
        )
    near = [pool.name for pool in spec.pools if pool.kind == "process" and pool.max_hosts]
    if near:
        raise SpecError(
            f"hosts of {', '.join(near)} are processes of the machine that `rayburst up` is called "
            f"on; `ray up` takes pools of other kinds, such as ssh and ec2"
        )
    return spec.head.ssh


def cluster_yaml(spec: FleetSpec, text: str) -> str:
    """The same as YAML, the fleet file in it as it stands. Raises SpecError."""
    config = cluster_config(spec, text)
    config["provider"]["fleet"] = _Block(text)
    return yaml.dump(config, Dumper=_Dumper, sort_keys=False, width=100)


class _Block(str):
    """Text that is written line by line."""


class _Dumper(yaml.SafeDumper):
    pass


def _block(dumper: yaml.SafeDumper, text: _Block) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", str(text), style="|")


_Dumper.add_representer(_Block, _block)


def _keys_of_hosts(spec: FleetSpec) -> list[str]:
    """Files that the head needs to reach machines of the pools."""
    blocks = [pool.ssh for pool in spec.pools if pool.ssh is not None]
    files = [file for ssh in blocks for file in (ssh.key, ssh.known_hosts) if file is not None]
    for file in files:
        if PurePosixPath(file).name == "known_hosts":
            raise SpecError(
                f"`ray up` carries {file} to the head, where it would replace the head's own; put "
                f"the keys of the fleet's machines into a file of another name:  "
                f"known_hosts: ~/.ssh/fleet_hosts"
            )
    return list(dict.fromkeys(files))


def _start(spec: FleetSpec, head: HeadSshSpec) -> str:
    words = [
        "ray start --head",
        f"--node-ip-address={head.ip}",
        f"--port={PORTS['gcs']}",
        "--dashboard-host=127.0.0.1",
        f"--dashboard-port={PORTS['dashboard']}",
        f"--dashboard-agent-listen-port={PORTS['dashboard_agent']}",
        f"--ray-client-server-port={PORTS['client']}",
        f"--autoscaling-config={home_of(spec.name)}/autoscaling.yaml",
        f"--num-cpus={spec.head.cpus}",
        "--num-gpus=0",
        f"--system-config={shlex.quote(system_config())}",
        "--disable-usage-stats",
    ]
    return " ".join(words)
