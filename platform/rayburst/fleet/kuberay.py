"""From the fleet file to KubeRay's manifests: RayCluster, RayJob, RayService. Pure.

    manifest, warnings = ray_cluster(spec, image="registry/rayburst:0.1")

On Kubernetes KubeRay alone decides about nodes: there is no planner of rayburst's in the loop. What
depends on it is refused (a budget, tenants) or warned of (on-demand pools, which KubeRay opens for
any work). One worker group per pool; its pods go to nodes that carry the label
`rayburst.io/pool: NAME`. Knows no Kubernetes API.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rayburst.errors import SpecError
from rayburst.fleet.connections import system_environment
from rayburst.fleet.render import node_labels
from rayburst.fleet.serving import serve_environment
from rayburst.fleet.spec import FleetSpec, Market, PoolSpec

API_VERSION = "ray.io/v1"
RAY_VERSION = "2.60.0"
STORE_SECRET = "rayburst-store"
_PRIORITY = {Market.ON_PREM: 200, Market.SPOT: 100, Market.ON_DEMAND: 0}
_HEAD = {"cpu": "1", "memory": "4Gi"}


def ray_cluster(spec: FleetSpec, *, image: str) -> tuple[dict[str, Any], list[str]]:
    """The RayCluster of a fleet, and what it does otherwise than a fleet of rayburst's own.

    Raises:
        SpecError: the fleet file asks for what KubeRay cannot do.
    """
    return _manifest("RayCluster", spec.name, _cluster(spec, image)), _warnings(spec)


def ray_job(spec: FleetSpec, *, image: str, entrypoint: str) -> tuple[dict[str, Any], list[str]]:
    """A RayJob that brings its own cluster and takes it along when it ends. Raises SpecError."""
    job = {
        "entrypoint": entrypoint,
        "shutdownAfterJobFinishes": True,
        "rayClusterSpec": _cluster(spec, image),
    }
    return _manifest("RayJob", spec.name, job), _warnings(spec)


def ray_service(spec: FleetSpec, *, image: str, serve: str) -> tuple[dict[str, Any], list[str]]:
    """A RayService of a Serve configuration (YAML text, as `serve deploy` takes it).

    Raises SpecError.
    """
    service = {"serveConfigV2": serve, "rayClusterConfig": _cluster(spec, image)}
    return _manifest("RayService", spec.name, service), _warnings(spec)


def _manifest(kind: str, name: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": name}, "spec": spec}


def _cluster(spec: FleetSpec, image: str) -> dict[str, Any]:
    _refuse(spec)
    return {
        "rayVersion": RAY_VERSION,
        "authOptions": {"mode": "token"},
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {
            "version": "v2",
            "idleTimeoutSeconds": round(spec.limits.idle_timeout_s),
        },
        "headGroupSpec": {
            "rayStartParams": {"num-cpus": str(spec.head.cpus), "dashboard-host": "0.0.0.0"},
            "template": {"spec": {"containers": [_container("ray-head", image, _HEAD, spec)]}},
        },
        "workerGroupSpecs": [_group(pool, image, spec) for pool in spec.pools],
    }


def _group(pool: PoolSpec, image: str, spec: FleetSpec) -> dict[str, Any]:
    shape = {"cpu": str(pool.shape.cpus), "memory": str(pool.shape.memory_bytes)}
    if pool.shape.gpus:
        shape["nvidia.com/gpu"] = str(pool.shape.gpus)
    return {
        "groupName": pool.name,
        "replicas": pool.min_hosts,
        "minReplicas": pool.min_hosts,
        "maxReplicas": pool.max_hosts,
        "priority": _PRIORITY[pool.market],
        "labels": node_labels(pool),
        "rayStartParams": {},
        "template": {
            "spec": {
                "nodeSelector": {"rayburst.io/pool": pool.name},
                "terminationGracePeriodSeconds": round(spec.limits.drain_s),
                "containers": [_container("ray-worker", image, shape, spec)],
            }
        },
    }


def _container(name: str, image: str, shape: Mapping[str, str], spec: FleetSpec) -> dict[str, Any]:
    store = spec.object_store
    env = [{"name": "RAYBURST_STORE", "value": store.uri}]
    shared = {**serve_environment(spec, {}, given={}), **system_environment()}
    for key, value in shared.items():
        env.append({"name": key, "value": value})
    if store.endpoint:
        env.append({"name": "AWS_ENDPOINT_URL", "value": store.endpoint})
        if store.endpoint.startswith("http://"):
            env.append({"name": "AWS_ALLOW_HTTP", "value": "true"})
    return {
        "name": name,
        "image": image,
        "resources": {"limits": dict(shape), "requests": dict(shape)},
        "env": env,
        "envFrom": [{"secretRef": {"name": STORE_SECRET, "optional": True}}],
    }


def _refuse(spec: FleetSpec) -> None:
    why = "on Kubernetes KubeRay alone decides about nodes"
    if spec.object_store.uri is None:
        raise SpecError(
            "object_store: pods cannot reach a store on this machine's loopback; name a bucket: "
            "object_store: {uri: s3://my-bucket/my-fleet}"
        )
    if spec.limits.budget_usd is not None:
        raise SpecError(f"limits.budget: {why}, and it knows no budget; leave it out")
    if spec.tenants:
        raise SpecError(
            f"tenants: {why}, and it knows no tenants; leave them out, and give each tenant a "
            f"RayCluster with a Kubernetes quota"
        )


def _warnings(spec: FleetSpec) -> list[str]:
    said = ["jobs with a deadline are not planned for under KubeRay, and none is moved to spot"]
    said += [
        f"pool {pool.name}: KubeRay opens on-demand for any work that finds no room elsewhere, not "
        f"only for work that names it; close it with `hosts: {{max: 0}}` if that is not wanted"
        for pool in spec.pools
        if pool.market is Market.ON_DEMAND and pool.max_hosts > 0
    ]
    return said
