"""From the fleet file to the autoscaling config that Ray reads. Pure.

    to_yaml(ray_config(spec, caps={"rack": Caps(min=0, max=1)}, fleet_dir=Path(".rayburst/local")))

One node type per pool, named by the pool. Every pool is closed (`max_workers: 0`) unless `caps`
opens it. Idle nodes are given back by the agent after a drain, so Ray's own idle time-out never
comes. Knows nothing of what runs; the agent passes its caps.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from rayburst.fleet import units
from rayburst.fleet.spec import FleetSpec, Market, PoolSpec
from rayburst.fleet.view import Caps

HEAD_TYPE = "head"
_PROVIDER = "rayburst.fleet.provider.HybridNodeProvider"
_NEVER_MINUTES = 60 * 24 * 365
_CLOSED = Caps(min=0, max=0)
_FIELDS_RAY_WANTS: dict[str, Any] = {
    # prepare_config() of an external provider reads these without asking whether they are there
    "auth": {},
    "file_mounts": {},
    "cluster_synced_files": [],
    "initialization_commands": [],
    "setup_commands": [],
    "head_setup_commands": [],
    "worker_setup_commands": [],
    "head_start_ray_commands": [],
    "worker_start_ray_commands": [],
}


def ray_config(
    spec: FleetSpec,
    *,
    caps: Mapping[str, Caps] | None = None,
    fleet_dir: Path | None = None,
) -> dict[str, Any]:
    """Ray's autoscaling config for `spec`."""
    opened = caps or {}
    types: dict[str, Any] = {
        HEAD_TYPE: {"resources": {"CPU": spec.head.cpus}, "node_config": {}, "max_workers": 0}
    }
    for pool in spec.pools:
        cap = opened.get(pool.name, _CLOSED)
        types[pool.name] = {
            "resources": node_resources(pool),
            "labels": node_labels(pool),
            "node_config": {"pool": pool.name},
            "min_workers": cap.min,
            "max_workers": cap.max,
        }
    provider: dict[str, Any] = {
        "type": "external",
        "module": _PROVIDER,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
    }
    if fleet_dir is not None:
        provider["fleet_dir"] = str(fleet_dir)
    return {
        "cluster_name": spec.name,
        "max_workers": sum(pool.max_hosts for pool in spec.pools),
        "idle_timeout_minutes": _NEVER_MINUTES,
        "upscaling_speed": 1000.0,
        "provider": provider,
        "head_node_type": HEAD_TYPE,
        "available_node_types": types,
        **_FIELDS_RAY_WANTS,
    }


def node_resources(pool: PoolSpec) -> dict[str, float]:
    """Ray resources of one host of a pool; memory in bytes."""
    shape = pool.shape
    resources: dict[str, float] = {"CPU": shape.cpus, "memory": shape.memory_bytes}
    if shape.gpus:
        resources["GPU"] = shape.gpus
    return resources


def node_labels(pool: PoolSpec) -> dict[str, str]:
    """Ray labels of every host of a pool. An on-prem host is not preemptible: to Ray on-demand."""
    price = pool.price_usd_per_hour
    labels = {
        "ray.io/market-type": "spot" if pool.market is Market.SPOT else "on-demand",
        "rayburst.io/market": str(pool.market),
        "rayburst.io/pool": pool.name,
        "rayburst.io/price": units.UNKNOWN if price is None else units.written_money(price),
    }
    if pool.zone:
        labels |= {"rayburst.io/zone": pool.zone, "ray.io/availability-zone": pool.zone}
    if pool.region:
        labels["ray.io/availability-region"] = pool.region
    if pool.shape.accelerator:
        labels["ray.io/accelerator-type"] = pool.shape.accelerator
    return labels


def to_yaml(config: Mapping[str, Any]) -> str:
    """The config as YAML, keys in the order above."""
    return yaml.safe_dump(dict(config), sort_keys=False)
