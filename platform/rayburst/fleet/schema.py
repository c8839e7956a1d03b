"""The fleet file as JSON Schema, for editors: keys as people write them, units included.

    rayburst fleet schema > cluster_configs/fleet.schema.json

A file names it in its first line: `# yaml-language-server: $schema=fleet.schema.json`. The schema
never refuses what FleetSpec takes; what spans keys (one name twice, min above max) only FleetSpec
finds. Deliberately does not know: YAML, Ray.
"""

from __future__ import annotations

import json
from typing import Any

from rayburst.fleet import units
from rayburst.fleet.spec import FleetSpec, Limits


def json_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a fleet file."""
    schema = _plain(FleetSpec.model_json_schema())
    properties = {name: part.get("properties", {}) for name, part in schema["$defs"].items()}
    properties["Limits"]["idle_timeout"]["default"] = _default("idle_timeout_s")
    properties["Limits"]["drain"]["default"] = _default("drain_s")
    properties["Limits"]["join"]["default"] = _default("join_s")
    store = schema["$defs"]["ObjectStoreSpec"]
    del store["required"]
    store["anyOf"] = [{"required": ["kind"]}, {"required": ["uri"]}]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "rayburst fleet file",
    }


def to_json(schema: dict[str, Any]) -> str:
    """The schema as the text of cluster_configs/fleet.schema.json."""
    return json.dumps(schema, indent=2) + "\n"


def _default(attribute: str) -> str:
    return units.written_duration(getattr(Limits(), attribute))


def _plain(part: Any) -> Any:
    """Pydantic's schema without what only code may give: null, plain numbers, class names."""
    if isinstance(part, list):
        return [_plain(item) for item in part]
    if not isinstance(part, dict):
        return part
    kinds = [kind for kind in part.get("anyOf", []) if kind != {"type": "null"}]
    if len(kinds) == 1:
        part = kinds[0] | {key: value for key, value in part.items() if key != "anyOf"}
    kept = {key: _plain(value) for key, value in part.items()}
    kept.pop("title", None)
    if kept.get("type") != "integer":
        kept.pop("default", None)
    return kept
