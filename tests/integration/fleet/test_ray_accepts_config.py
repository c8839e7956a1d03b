"""Ray's own checks take the config that render.py makes. Fails loudly when Ray changes them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from rayburst.fleet.render import node_labels, ray_config, to_yaml
from rayburst.fleet.spec import FleetSpec, default_path
from rayburst.fleet.view import Caps

SPEC = FleetSpec.load(default_path())
OPEN = {"rack": Caps(min=0, max=2), "spot-b": Caps(min=1, max=1)}
CLUSTERS = sorted((Path(__file__).parents[3] / "cluster_configs" / "ray-up").glob("*.yaml"))
CONFIG = ray_config(SPEC, caps=OPEN, fleet_dir=Path("/x/.rayburst/local"))


def _read(config: dict[str, Any]) -> Any:
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig

    return AutoscalingConfig(copy.deepcopy(config))


def test_the_schema_of_ray_takes_it() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(yaml.safe_load(to_yaml(CONFIG))))


@pytest.mark.parametrize("path", CLUSTERS, ids=lambda path: path.stem)
def test_ray_up_takes_what_is_rendered_for_it(path: Path) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(yaml.safe_load(path.read_text()))
    validate_config(config)
    assert config["worker_setup_commands"] == [], "hosts are brought up by their pools"


def test_the_autoscaler_sees_the_caps_shapes_and_labels() -> None:
    config = _read(yaml.safe_load(to_yaml(CONFIG)))
    types = config.get_node_type_configs()
    caps = {name: (t.min_worker_nodes, t.max_worker_nodes) for name, t in types.items()}
    assert caps == {
        "head": (0, 1),  # Ray counts the head itself
        "rack": (0, 2),
        "spot-a": (0, 0),
        "spot-b": (1, 1),
        "cloud": (0, 0),
    }
    for pool in SPEC.pools:
        assert types[pool.name].resources == {"CPU": 1, "memory": 2 * 2**30}
        assert types[pool.name].labels == node_labels(pool)
    assert config.get_max_num_worker_nodes() == 8
    assert config.disable_node_updaters() is True
    assert config.get_idle_timeout_s() >= 365 * 24 * 3600


def test_new_caps_do_not_make_living_nodes_outdated() -> None:
    before = _read(ray_config(SPEC)).get_node_type_configs()
    after = _read(CONFIG).get_node_type_configs()
    for name in before:
        assert before[name].launch_config_hash == after[name].launch_config_hash


def test_labels_are_ones_that_a_node_may_carry() -> None:
    from ray._private.label_utils import validate_node_label_syntax

    for pool in SPEC.pools:
        validate_node_label_syntax(node_labels(pool))
    with pytest.raises(ValueError, match="label"):  # Ray does look
        validate_node_label_syntax({"rayburst.io/price": "1e+06 USD/h"})
