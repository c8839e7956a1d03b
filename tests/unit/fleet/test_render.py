"""From the fleet file to Ray's autoscaling config."""

from __future__ import annotations

from pathlib import Path

import yaml

from rayburst.fleet.render import node_labels, node_resources, ray_config, to_yaml
from rayburst.fleet.spec import FleetSpec, default_path
from rayburst.fleet.view import Caps

SPEC = FleetSpec.load(default_path())
GPU = FleetSpec.parse("""\
name: gpu
object_store: {uri: s3://bucket}
head: {cpus: 2}
pools:
  - name: a100
    kind: process
    market: spot
    shape: {cpus: 8, memory: 64GiB, gpus: 4, accelerator: A100}
    zone: us-east-1a
    region: us-east-1
    price: 1234567.125 USD/h
    hosts: {min: 1, max: 3}
  - name: free
    kind: process
    market: on-prem
    shape: {cpus: 1, memory: 1GiB}
    hosts: {max: 2}
""")


def test_every_pool_is_closed_without_caps() -> None:
    types = ray_config(SPEC)["available_node_types"]
    assert list(types) == ["head", "rack", "spot-a", "spot-b", "cloud"]
    for name in ("rack", "spot-a", "spot-b", "cloud"):
        assert (types[name]["min_workers"], types[name]["max_workers"]) == (0, 0)


def test_a_floor_in_the_file_opens_nothing_by_itself() -> None:
    a100 = ray_config(GPU)["available_node_types"]["a100"]
    assert (a100["min_workers"], a100["max_workers"]) == (0, 0)


def test_caps_open_the_pools_they_name() -> None:
    types = ray_config(GPU, caps={"a100": Caps(min=1, max=2)})["available_node_types"]
    assert (types["a100"]["min_workers"], types["a100"]["max_workers"]) == (1, 2)
    assert types["free"]["max_workers"] == 0


def test_caps_change_nothing_that_ray_compares_when_it_looks_for_outdated_nodes() -> None:
    closed = ray_config(GPU)
    opened = ray_config(GPU, caps={"a100": Caps(min=1, max=2)})
    for name, node_type in closed["available_node_types"].items():
        assert node_type["node_config"] == opened["available_node_types"][name]["node_config"]
    assert closed["max_workers"] == opened["max_workers"] == 5
    assert closed["provider"] == opened["provider"]


def test_removals_are_never_left_to_rays_idle_timeout() -> None:
    assert ray_config(SPEC)["idle_timeout_minutes"] >= 60 * 24 * 365


def test_the_provider_is_ours_and_knows_the_fleets_folder() -> None:
    config = ray_config(SPEC, fleet_dir=Path("/somewhere/local"))
    assert config["cluster_name"] == "local"
    assert config["head_node_type"] == "head"
    assert config["provider"] == {
        "type": "external",
        "module": "rayburst.fleet.provider.HybridNodeProvider",
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
        "fleet_dir": "/somewhere/local",
    }


def test_the_head_offers_what_the_file_says_and_has_no_workers() -> None:
    head = ray_config(GPU)["available_node_types"]["head"]
    assert (head["resources"]["CPU"], head["max_workers"]) == (2, 0)


def test_resources_are_the_shape() -> None:
    a100, free = GPU.pools
    assert node_resources(a100) == {"CPU": 8, "memory": 64 * 2**30, "GPU": 4}
    assert node_resources(free) == {"CPU": 1, "memory": 2**30}


def test_labels_say_what_a_host_is_and_costs() -> None:
    a100, free = GPU.pools
    assert node_labels(a100) == {
        "ray.io/market-type": "spot",
        "ray.io/accelerator-type": "A100",
        "ray.io/availability-zone": "us-east-1a",
        "ray.io/availability-region": "us-east-1",
        "rayburst.io/market": "spot",
        "rayburst.io/pool": "a100",
        "rayburst.io/price": "1234567.125",
        "rayburst.io/zone": "us-east-1a",
    }
    assert node_labels(free) == {
        "ray.io/market-type": "on-demand",
        "rayburst.io/market": "on-prem",
        "rayburst.io/pool": "free",
        "rayburst.io/price": "unknown",
    }


def test_the_text_is_the_config_and_the_same_every_time() -> None:
    config = ray_config(GPU, caps={"a100": Caps(min=0, max=1)}, fleet_dir=Path("/x"))
    assert yaml.safe_load(to_yaml(config)) == config
    assert to_yaml(config) == to_yaml(ray_config(GPU, caps={"a100": Caps(min=0, max=1)},
                                                 fleet_dir=Path("/x")))  # fmt: skip
