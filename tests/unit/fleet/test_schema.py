"""The JSON Schema for editors agrees with what FleetSpec takes."""

from __future__ import annotations

from pathlib import Path

import jsonschema
import pytest

from rayburst.errors import SpecError
from rayburst.fleet import specfile
from rayburst.fleet.schema import json_schema, to_json
from rayburst.fleet.spec import FleetSpec

CONFIGS = Path(__file__).parents[3] / "cluster_configs"
FLEET_FILES = [p for p in sorted(CONFIGS.glob("*.yaml")) if "fleet.schema.json" in p.read_text()]
SMALL = """\
name: a
object_store: {kind: embedded}
pools: [{name: p, kind: process, market: spot, shape: {cpus: 1, memory: 1GiB}, hosts: {max: 1}}]
"""


def test_the_file_in_cluster_configs_is_the_schema() -> None:
    command = "rayburst fleet schema > cluster_configs/fleet.schema.json"
    assert (CONFIGS / "fleet.schema.json").read_text() == to_json(json_schema()), f"run: {command}"


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(json_schema())


@pytest.mark.parametrize("path", FLEET_FILES, ids=lambda path: path.name)
def test_every_fleet_file_parses_and_fits_the_schema(path: Path) -> None:
    text = path.read_text()
    assert text.startswith("# yaml-language-server: $schema=fleet.schema.json\n")
    FleetSpec.load(path)
    jsonschema.validate(specfile.read(text, str(path)).data, json_schema())


def test_the_default_file_is_among_them() -> None:
    assert "local.yaml" in [path.name for path in FLEET_FILES]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("name: a", "name: A"),
        ("name: a", "nme: a"),
        ("kind: embedded", "kind: local"),
        ("{kind: embedded}", "{}"),
        ("{kind: embedded}", "{uri: gs://bucket}"),
        ("kind: process", "kind: Process"),
        ("market: spot", "market: sport"),
        ("cpus: 1", "cpus: 0"),
        ("cpus: 1", 'cpus: "1"'),
        ("1GiB", "1GB"),
        ("1GiB", "1"),
        ("max: 1", "min: 1"),
        ("hosts: {max: 1}", "hosts: 1"),
        ("hosts:", "price: 0.35, hosts:"),
        ("hosts:", "price: 0.35 USD, hosts:"),
        ("pools:", "limits: {drain: 20}\npools:"),
        ("pools:", "limits: {budget: $5}\npools:"),
        ("pools: [", "pools: []\nx: ["),
    ],
)
def test_an_editor_marks_what_the_fleet_file_refuses(old: str, new: str) -> None:
    text = SMALL.replace(old, new)
    assert text != SMALL
    with pytest.raises(SpecError):
        FleetSpec.parse(text)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(specfile.read(text, "f.yaml").data, json_schema())


def test_defaults_are_told_in_the_units_of_the_file() -> None:
    limits = json_schema()["$defs"]["Limits"]["properties"]
    assert (limits["idle_timeout"]["default"], limits["drain"]["default"]) == ("1m", "30s")
    FleetSpec.parse(SMALL + "limits: {idle_timeout: 1m, drain: 30s}\n")
