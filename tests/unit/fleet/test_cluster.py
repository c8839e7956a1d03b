"""From the fleet file to what `ray up` takes, and its half on the user's machine."""

from __future__ import annotations

import json
import os
import shlex
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler.tags import TAG_RAY_NODE_KIND, TAG_RAY_NODE_STATUS
from typer.testing import CliRunner

from rayburst.cli import app
from rayburst.errors import FleetExistsError, SpecError
from rayburst.fleet.cluster import cluster_config, cluster_yaml
from rayburst.fleet.connections import SYSTEM_CONFIG
from rayburst.fleet.launcher import ClusterLauncher
from rayburst.fleet.spec import FleetSpec, default_path
from rayburst.sdk import connect

CONFIGS = Path(__file__).parents[3] / "cluster_configs"
HEAD = {TAG_RAY_NODE_KIND: "head"}
TEXT = """\
name: lab
object_store: {uri: s3://bucket}
head: {ssh: {host: 10.0.0.6, user: ray, key: KEY}}
pools:
  - {name: rack, kind: ssh, market: on-prem, shape: {cpus: 1, memory: 1GiB}, hosts: {max: 1},
     ssh: {hosts: [10.0.0.7], user: ray, key: KEY}}
"""


@pytest.mark.parametrize(
    "rendered", sorted((CONFIGS / "ray-up").glob("*.yaml")), ids=lambda p: p.stem
)
def test_what_lies_beside_a_fleet_file_is_rendered_from_it(rendered: Path) -> None:
    text = (CONFIGS / rendered.name).read_text()
    command = f"rayburst fleet render cluster_configs/{rendered.name} --to ray-up"
    assert rendered.read_text() == cluster_yaml(FleetSpec.parse(text), text), f"run: {command}"
    assert yaml.safe_load(rendered.read_text())["provider"]["fleet"] == text


def test_ray_starts_with_the_token_and_the_agent_after_it() -> None:
    config = cluster_config(FleetSpec.parse(TEXT), TEXT)
    prepare, start, agent = config["head_start_ray_commands"]
    assert prepare.endswith("rayburst.fleet.head prepare ~/.rayburst/lab")
    assert start.startswith(". ~/.rayburst/lab/env && ray start --head --node-ip-address=10.0.0.6")
    assert "--dashboard-host=127.0.0.1" in start
    (told,) = [w for w in shlex.split(start) if w.startswith("--system-config=")]
    assert json.loads(told.partition("=")[2]) == SYSTEM_CONFIG
    assert agent.endswith("rayburst.fleet.head start ~/.rayburst/lab")
    assert config["auth"] == {"ssh_user": "ray", "ssh_private_key": "KEY"}
    assert list(config["file_mounts"]) == ["~/.rayburst/lab/ship", "KEY"]


def test_a_python_that_has_all_of_it_needs_no_setup() -> None:
    text = TEXT.replace("pools:", "software: {python: /opt/py/bin/python}\npools:", 1)
    config = cluster_config(FleetSpec.parse(text), text)
    assert config["head_setup_commands"] == []
    assert config["head_start_ray_commands"][0].startswith("/opt/py/bin/python -m")
    assert any(
        "pip install" in c
        for c in cluster_config(FleetSpec.parse(TEXT), TEXT)["head_setup_commands"]
    )


def test_the_heads_own_known_hosts_are_not_replaced() -> None:
    text = TEXT.replace(
        "[10.0.0.7], user: ray, key: KEY", "[10.0.0.7], user: ray, known_hosts: ~/.ssh/known_hosts"
    )
    with pytest.raises(SpecError, match="would replace the head's own"):
        cluster_config(FleetSpec.parse(text), text)


def test_a_fleet_of_this_machine_is_no_cluster() -> None:
    text = default_path().read_text()
    with pytest.raises(SpecError, match="`rayburst up` starts it on this one"):
        cluster_config(FleetSpec.parse(text), text)
    headed = text.replace("head: {cpus: 0}", "head: {ssh: {host: 10.0.0.6, user: ray}}")
    with pytest.raises(SpecError, match="hosts of rack, spot-a, spot-b, cloud are processes"):
        cluster_config(FleetSpec.parse(headed), headed)


def test_a_name_needs_the_heads_address() -> None:
    with pytest.raises(SpecError, match="Ray needs the head's IP address"):
        FleetSpec.parse(TEXT.replace("host: 10.0.0.6", "host: head.example.com"))
    text = TEXT.replace("host: 10.0.0.6", "host: head.example.com, address: 10.0.0.6")
    config = cluster_config(FleetSpec.parse(text), text)
    assert "--node-ip-address=10.0.0.6" in config["head_start_ray_commands"][1]


Launch = Callable[..., ClusterLauncher]


@pytest.fixture
def launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Launch:
    """A launcher of a user's machine; `ssh` runs in a shell here, at home in another folder."""
    (tmp_path / "user").mkdir()
    (tmp_path / "head").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret")
    (tmp_path / "key").touch()

    def ssh(command: list[str], **how: Any) -> subprocess.CompletedProcess[bytes]:
        words = command[command.index("ray@10.0.0.6") + 1 :]
        env = {**os.environ, "HOME": str(tmp_path / "head")}
        return subprocess.run(["bash", "-c", " ".join(words)], env=env, check=False, **how)

    def make(name: str = "lab") -> ClusterLauncher:
        text = TEXT.replace("KEY", str(tmp_path / "key")).replace("name: lab", f"name: {name}")
        return ClusterLauncher({"fleet": text}, name, run=ssh)

    return make


def test_a_head_is_taken_found_from_anywhere_and_given_back(launch: Launch, tmp_path: Path) -> None:
    assert launch().non_terminated_nodes(HEAD) == []
    launch().create_node({}, HEAD, 1)
    launch().set_node_tags("head", {TAG_RAY_NODE_STATUS: "up-to-date"})
    elsewhere = launch()
    assert elsewhere.non_terminated_nodes(HEAD) == ["head"]
    assert elsewhere.non_terminated_nodes({}) == ["head"], "no host before it was set up"
    assert elsewhere.node_tags("head") == {**HEAD, TAG_RAY_NODE_STATUS: "up-to-date"}
    assert elsewhere.external_ip("head") == "10.0.0.6"
    lease = json.loads((tmp_path / "head/.rayburst/lease.json").read_text())
    assert (lease["fleet"], lease["host"]) == ("lab", "head")
    env = {**os.environ, "RAYBURST_HOST": "head", "RAYBURST_OWNER": str(tmp_path / "another")}
    bystander = subprocess.Popen(["sleep", "600"], env=env)
    elsewhere.terminate_nodes(["head"])
    assert launch().is_terminated("head")
    assert bystander.poll() is None, "the head of another fleet on the same machine"
    bystander.kill()
    bystander.wait()
    assert [p.name for p in (tmp_path / "head/.rayburst").rglob("*") if p.is_file()] == []


def test_a_machine_of_another_fleet_is_left_alone(launch: Launch) -> None:
    launch("theirs").create_node({}, HEAD, 1)
    assert launch().non_terminated_nodes(HEAD) == []
    with pytest.raises(FleetExistsError, match="is 'head' of fleet 'theirs'"):
        launch().create_node({}, HEAD, 1)


def test_the_ship_holds_secrets_in_files_of_their_own(launch: Launch, tmp_path: Path) -> None:
    launch()
    ship = tmp_path / "user/.rayburst/lab/ship"
    token = (ship / "token").read_text()
    assert len(token) == 64
    for name in ("token", "store.json"):
        assert stat.S_IMODE((ship / name).stat().st_mode) == 0o600
    assert json.loads((ship / "store.json").read_text())["AWS_SECRET_ACCESS_KEY"] == "very-secret"
    assert len(list(ship.glob("rayburst-*.whl"))) == 1
    launch()
    assert (ship / "token").read_text() == token, "the next `ray exec` reaches the same cluster"


def test_a_key_that_is_not_here_is_told_at_once(launch: Launch, tmp_path: Path) -> None:
    (tmp_path / "key").unlink()
    with pytest.raises(SpecError, match="key of the fleet file is not on this machine"):
        launch()


def test_where_ray_up_was_called_the_fleet_is_reached_through_rays_tunnel(
    launch: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch()
    monkeypatch.chdir(tmp_path)
    platform = connect("lab")
    assert platform.dashboard_url == "http://127.0.0.1:8265"
    said = CliRunner().invoke(app, ["env", "lab"])
    assert f"export RAY_AUTH_TOKEN_PATH={tmp_path}/user/.rayburst/lab/ship/token" in said.output
    refused = CliRunner().invoke(app, ["down", "lab"])
    assert isinstance(refused.exception, FleetExistsError)
    assert "with `ray down`" in str(refused.exception)
