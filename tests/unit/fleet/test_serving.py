"""What Ray Serve is told in a fleet: alike on this machine, under `ray up` and on Kubernetes."""

from __future__ import annotations

from pathlib import Path

import pytest
from ray._common.utils import import_attr
from ray.serve._private import constants

from rayburst.fleet.connections import system_environment
from rayburst.fleet.kuberay import ray_cluster
from rayburst.fleet.layout import FleetDir, FleetState, ray_environment
from rayburst.fleet.serving import HAPROXY_PORTS, listens_on, serve_environment
from rayburst.fleet.spec import FleetSpec

TEXT = """\
name: lab
object_store: {uri: s3://bucket}
SERVE
pools:
  - {name: rack, kind: process, market: on-prem, shape: {cpus: 1, memory: 1GiB}, hosts: {max: 1}}
"""
PLAIN = TEXT.replace("SERVE\n", "")
FAST = TEXT.replace("SERVE", "serve: {haproxy: true}")
CALLBACK = "RAY_SERVE_CONTROLLER_CALLBACK_IMPORT_PATH"


def test_serves_controller_is_rayburst_s_unless_another_was_given() -> None:
    spec = FleetSpec.parse(PLAIN)
    env = serve_environment(spec, {}, given={})
    assert list(env) == [CALLBACK], "no HAProxy unless the file says so: it listens everywhere"
    assert callable(import_attr(env[CALLBACK]))
    assert serve_environment(spec, {}, given={CALLBACK: "mine:own"}) == {CALLBACK: "mine:own"}
    assert listens_on(spec, "127.20.1.1") == "127.20.1.1"


def test_with_haproxy_serve_has_ports_of_the_fleets_own_where_it_has_some() -> None:
    spec = FleetSpec.parse(FAST)
    assert serve_environment(spec, {"gcs": 1}, given={}).keys() == {
        CALLBACK,
        "RAY_SERVE_ENABLE_HA_PROXY",
    }
    ports = {role: 9000 + number for number, role in enumerate(HAPROXY_PORTS)}
    env = serve_environment(spec, ports, given={})
    for role, variable in HAPROXY_PORTS.items():
        assert env[variable] == str(ports[role])
        assert hasattr(constants, variable), "Ray reads it by this name"
    assert listens_on(spec, "127.20.1.1") == "0.0.0.0"


@pytest.mark.parametrize("address", ["", "10.0.0.6"], ids=["on this machine", "of ray up"])
@pytest.mark.parametrize("text", [PLAIN, FAST])
def test_each_head_and_each_pod_is_told_the_same(tmp_path: Path, address: str, text: str) -> None:
    fleet = FleetDir(tmp_path / "lab")
    fleet.path.mkdir()
    (fleet.path / "fleet.yaml").write_text(text)
    state = FleetState(
        name="lab", started_at=0, subnet="127.20.1", ports={}, ray_tmp="", store_uri="s3://bucket",
        store_endpoint=None, store_is_embedded=False, address=address,
    )  # fmt: skip
    spec = FleetSpec.parse(text)
    told = serve_environment(spec, {}, given={})
    assert told.items() <= ray_environment(fleet, state).items()
    manifest, _ = ray_cluster(spec, image="rayburst")
    head, worker = (
        group["template"]["spec"]["containers"][0]["env"]
        for group in (
            manifest["spec"]["headGroupSpec"],
            manifest["spec"]["workerGroupSpecs"][0],
        )
    )
    for env in (head, worker):
        assert system_environment().items() <= {one["name"]: one["value"] for one in env}.items()
        assert told.items() <= {one["name"]: one["value"] for one in env}.items()
