"""KubeRay's manifests fit KubeRay's own schemas; what it cannot do is refused aloud."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from typer.testing import CliRunner

from rayburst.cli import app
from rayburst.errors import SpecError
from rayburst.fleet.kuberay import RAY_VERSION, ray_cluster, ray_job, ray_service
from rayburst.fleet.spec import FleetSpec

ROOT = Path(__file__).resolve().parents[3]
SCHEMAS = ROOT.parent / "shared" / "kuberay"  # KubeRay's CRDs, by their plural
FLEET = """
name: lab
object_store: {uri: s3://bucket/lab, endpoint: 'http://10.0.0.5:8333'}
limits: {idle_timeout: 5m, drain: 45s}
pools:
  - {name: rack, kind: process, market: on-prem, shape: {cpus: 8, memory: 32GiB},
     hosts: {min: 1, max: 2}}
  - {name: spot, kind: process, market: spot, zone: us-east-1a, region: us-east-1,
     shape: {cpus: 8, memory: 32GiB, gpus: 1, accelerator: A100}, hosts: {max: 4}}
"""
CLOUD = """  - {name: cloud, kind: process, market: on-demand, shape: {cpus: 8, memory: 32GiB},
     hosts: {max: 4}}
"""


def checked(manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest, once KubeRay's own schema took it, unknown keys refused."""
    jsonschema.validate(manifest, strict(schema_of(manifest["kind"])))
    return manifest


@cache
def schema_of(kind: str) -> dict[str, Any]:
    file = SCHEMAS / f"{kind.lower()}s.yaml"
    if not file.is_file():
        pytest.skip(f"KubeRay's schemas are not at {SCHEMAS}")
    definition = yaml.load(file.read_bytes(), Loader=yaml.CSafeLoader)
    (served,) = (v for v in definition["spec"]["versions"] if v["name"] == "v1")
    schema: dict[str, Any] = served["schema"]["openAPIV3Schema"]
    return schema


def strict(part: Any) -> Any:
    if isinstance(part, list):
        return [strict(one) for one in part]
    if not isinstance(part, dict):
        return part
    kept = {key: strict(value) for key, value in part.items()}
    open_ended = part.get("x-kubernetes-preserve-unknown-fields")
    if isinstance(part.get("properties"), dict) and part.get("type") == "object" and not open_ended:
        kept.setdefault("additionalProperties", False)
    return kept


def test_the_check_refuses_what_kuberay_does_not_know() -> None:
    manifest, _ = ray_cluster(FleetSpec.parse(FLEET), image="rayburst:0.1")
    manifest["spec"]["workerGroupSpecs"][0]["maxReplica"] = 2
    with pytest.raises(jsonschema.ValidationError, match="maxReplica"):
        checked(manifest)


def test_a_fleet_becomes_a_ray_cluster_with_a_group_for_each_pool() -> None:
    manifest, warnings = ray_cluster(FleetSpec.parse(FLEET), image="rayburst:0.1")
    spec = checked(manifest)["spec"]
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["autoscalerOptions"] == {"version": "v2", "idleTimeoutSeconds": 300}
    rack, spot = spec["workerGroupSpecs"]
    assert (rack["minReplicas"], rack["maxReplicas"], spot["minReplicas"]) == (1, 2, 0)
    assert rack["priority"] > spot["priority"]
    assert spot["labels"]["ray.io/market-type"] == "spot"
    pod = spot["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] == 45
    assert pod["nodeSelector"] == {"rayburst.io/pool": "spot"}
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {
        "cpu": "8",
        "memory": str(32 * 2**30),
        "nvidia.com/gpu": "1",
    }
    assert {"name": "AWS_ENDPOINT_URL", "value": "http://10.0.0.5:8333"} in container["env"]
    assert len(warnings) == 1


def test_a_job_and_a_service_bring_the_same_cluster() -> None:
    spec = FleetSpec.parse(FLEET)
    cluster, _ = ray_cluster(spec, image="rayburst:0.1")
    entrypoint = "python jobs/train_lm.py --workers 1:4"
    job, _ = ray_job(spec, image="rayburst:0.1", entrypoint=entrypoint)
    serve = (ROOT / "serve_apps" / "lm.yaml").read_text()
    service, _ = ray_service(spec, image="rayburst:0.1", serve=serve)
    assert checked(job)["spec"]["entrypoint"] == entrypoint
    assert job["spec"]["rayClusterSpec"] == cluster["spec"]
    assert checked(service)["spec"]["rayClusterConfig"] == cluster["spec"]
    assert yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("{uri: s3://bucket/lab, endpoint: 'http://10.0.0.5:8333'}", "{kind: embedded}", "bucket"),
        ("idle_timeout: 5m", "budget: 5 USD", "it knows no budget"),
        ("pools:", "tenants: [{name: research}]\npools:", "it knows no tenants"),
    ],
)
def test_what_kuberay_cannot_do_is_refused(old: str, new: str, says: str) -> None:
    text = FLEET.replace(old, new)
    assert text != FLEET
    with pytest.raises(SpecError, match=says):
        ray_cluster(FleetSpec.parse(text), image="rayburst:0.1")


def test_what_kuberay_does_otherwise_is_said(tmp_path: Path) -> None:
    file = tmp_path / "fleet.yaml"
    file.write_text(FLEET + CLOUD)
    words = ["fleet", "render", str(file), "--to", "raycluster", "--image", "rayburst:0.1"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert checked(yaml.safe_load(done.stdout))["metadata"] == {"name": "lab"}
    assert "pool cloud: KubeRay opens on-demand for any work" in done.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--to", "raycluster"], "--image"),
        (["--to", "rayjob", "--image", "a:1"], "--entrypoint"),
        (["--to", "rayservice", "--image", "a:1"], "--serve"),
        (["--to", "helm"], "autoscaler, ray-up, raycluster, rayjob, rayservice"),
    ],
)
def test_what_a_rendering_needs_is_asked_for(tmp_path: Path, words: list[str], says: str) -> None:
    file = tmp_path / "fleet.yaml"
    file.write_text(FLEET)
    done = CliRunner().invoke(app, ["fleet", "render", str(file), *words])
    assert isinstance(done.exception, SpecError)
    assert says in str(done.exception)


def test_the_ray_version_is_the_one_that_is_pinned() -> None:
    assert f'"ray[train,serve,tune]=={RAY_VERSION}"' in (ROOT / "pyproject.toml").read_text()
