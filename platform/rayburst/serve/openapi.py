"""The OpenAPI document of a served model, from its codec and options. Pure: no server in it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from rayburst.serve.codec import JSON
from rayburst.serve.endpoint import MODEL_ID, Endpoint
from rayburst.serve.rungs import DEGRADED, VARIANT, Rungs

__all__ = ["describe"]

_WHY = {
    "413": "The body is larger than max_body_bytes",
    "415": "The content type is not taken",
    "422": "The input cannot be used",
    "429": "The tenant asks for more than its rate or its share",
    "500": "The model failed on this request",
    "503": "It could not be answered in time; refused at once",
    "504": "Its deadline passed before it could be computed",
}
_HEADERS = {
    "x-rayburst-deadline-ms": ("milliseconds until the answer is of no use", "number", 0.001),
    "x-rayburst-priority": ("0 is the most urgent, 9 the least; 1 if not given", "integer", 0),
    "x-request-id": ("comes back with the answer", "string", None),
}


def describe(endpoint: Endpoint, *, example: Any, root_path: str = "") -> dict[str, Any]:
    """OpenAPI 3.1 of one model's routes under `root_path`."""
    schema = dict(endpoint.codec.schema)
    components = {"schemas": schema.pop("$defs", {}) | {"Error": _error_schema()}}
    schema = _moved(schema)
    body: dict[str, Any] = {JSON: {"schema": schema}}
    if example is not None:
        body[JSON]["example"] = msgspec.json.decode(endpoint.codec.encode(example, JSON))
    for kind in endpoint.codec.kinds[1:]:
        body[kind] = {"schema": {"type": "string", "format": "binary"}}
    paths = {"/predict": {"post": _post("predict", "Answers one input", body, {JSON: {}})}}
    model_ids = getattr(endpoint.model, "model_ids", None)
    if model_ids is not None:
        which = _header(MODEL_ID.decode(), "which of the models", "string", None)
        if isinstance(model_ids, Iterable):
            which["schema"]["enum"] = sorted(model_ids)
        paths["/predict"]["post"]["parameters"].append({**which, "required": True})
    if endpoint.rungs is not None:
        paths["/predict"]["post"]["responses"]["200"]["headers"] = _variant_headers(endpoint.rungs)
    if hasattr(endpoint.model, "stream"):
        events = {"text/event-stream": {"schema": {"type": "string"}}}
        paths["/stream"] = {"post": _post("stream", "Answers piece by piece", body, events)}
    for path, words in {"/healthz": "Up", "/metrics": "Prometheus metrics"}.items():
        answer = {"200": {"description": words}}
        paths[path] = {"get": {"operationId": path[1:], "summary": words, "responses": answer}}
    return {
        "openapi": "3.1.0",
        "info": {"title": endpoint.name, "version": "1"},
        "servers": [{"url": root_path or "/"}],
        "paths": paths,
        "components": _moved(components),
    }


def _post(name: str, words: str, body: Any, answer: Any) -> dict[str, Any]:
    error = {JSON: {"schema": {"$ref": "#/components/schemas/Error"}}}
    responses = {status: {"description": why, "content": error} for status, why in _WHY.items()}
    return {
        "operationId": name,
        "summary": words,
        "parameters": [_header(name, *about) for name, about in _HEADERS.items()],
        "requestBody": {"required": True, "content": body},
        "responses": {"200": {"description": words, "content": answer}, **responses},
    }


def _header(name: str, words: str, kind: str, least: float | None) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": kind}
    if least is not None:
        schema["minimum"] = least
        schema["maximum"] = 9 if kind == "integer" else 3_600_000
    return {"name": name, "in": "header", "description": words, "schema": schema}


def _variant_headers(rungs: Rungs) -> dict[str, Any]:
    which = {"type": "string", "enum": rungs.names}
    share = {"type": "number", "minimum": 0, "maximum": 1}
    return {
        VARIANT.decode(): {"description": "the form that answered", "schema": which},
        DEGRADED.decode(): {
            "description": "under overload: how often this form agrees with the best one",
            "schema": share,
        },
    }


def _error_schema() -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["error", "status"],
        "properties": {
            "error": {"type": "string"},
            "status": {"type": "integer"},
            "retry_after_s": {"type": "number"},
        },
    }


def _moved(schema: Any) -> Any:
    """References of a schema that stood alone, pointed at the document's components."""
    if isinstance(schema, dict):
        return {
            key: value.replace("#/$defs/", "#/components/schemas/")
            if key == "$ref" and isinstance(value, str)
            else _moved(value)
            for key, value in schema.items()
        }
    return [_moved(item) for item in schema] if isinstance(schema, list) else schema
