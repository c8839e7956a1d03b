"""Routes, bodies and the errors that help, over a model that answers at once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from fastapi import FastAPI

from rayburst.errors import RefusedError
from rayburst.serve.lm_api import GenerateRequest, ModelInfo, Scored, build_api


class Service:
    """Repeats the prompt; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[GenerateRequest, int]] = []

    @property
    def info(self) -> ModelInfo:
        return ModelInfo(
            version="demo@400", uri="s3://b/runs/demo", run="demo", step=400, bits_per_byte=3.1,
            order0_bits_per_byte=None, parameters=1000, block_size=128,
        )  # fmt: skip

    @contextmanager
    def turn(self, request_id: str = "") -> Iterator[Service]:
        yield self

    async def generate(self, request: GenerateRequest, seed: int) -> bytes:
        self.asked.append((request, seed))
        return request.prompt.encode()[: request.max_new_tokens]

    async def score(self, text: bytes) -> Scored:
        if text == b"too much":
            raise RefusedError("it would take 9 s", status=503, retry_after_s=1.5)
        told = {"x-rayburst-variant": "int8", "x-rayburst-degraded": "0.9850"}
        return Scored(2.5, len(text) - 1, told if text == b"under overload" else {})

    def figures(self) -> bytes:
        return b"some 1.0\n"


@dataclass
class Answer:
    """What the application sent."""

    status_code: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    content: bytes = b""

    def json(self) -> Any:
        return json.loads(self.content)


class Client:
    """Speaks ASGI to the application: no server, no socket."""

    def __init__(self, api: FastAPI) -> None:
        self.api = api

    def get(self, path: str) -> Answer:
        return asyncio.run(self._ask("GET", path, b""))

    def post(self, path: str, *, json: Any = None, content: bytes | None = None) -> Answer:
        body = _dumps(json) if content is None else content
        return asyncio.run(self._ask("POST", path, body))

    async def _ask(self, method: str, path: str, body: bytes) -> Answer:
        answer = Answer()

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body}

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                answer.status_code = message["status"]
                answer.headers = {k.decode(): v.decode() for k, v in message["headers"]}
            else:
                answer.content += message.get("body", b"")

        scope = {
            "type": "http", "method": method, "path": path, "raw_path": path.encode(),
            "query_string": b"", "root_path": "", "scheme": "http", "http_version": "1.1",
            "headers": [(b"content-type", b"application/json")], "server": ("test", 80),
        }  # fmt: skip
        await self.api(scope, receive, send)
        return answer


def _dumps(body: Any) -> bytes:
    return json.dumps(body).encode()


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
def client(service: Service) -> Client:
    return Client(build_api(service))


def test_generate(client: Client, service: Service) -> None:
    body = {"prompt": "héllo", "max_new_tokens": 4, "seed": 7}
    assert client.post("/generate", json=body).json() == {
        "text": "hél",
        "new_tokens": 4,
        "seed": 7,
        "model": "demo@400",
    }
    assert service.asked[0][0].temperature == 1.0


def test_half_a_character_becomes_a_replacement_sign(client: Client) -> None:
    answer = client.post("/generate", json={"prompt": "é", "max_new_tokens": 1}).json()
    assert answer["text"] == "\ufffd"


def test_a_seed_is_drawn_and_told(client: Client, service: Service) -> None:
    seeds = {client.post("/generate", json={"prompt": "a"}).json()["seed"] for _ in range(4)}
    assert len(seeds) == 4
    assert seeds == {seed for _, seed in service.asked}


def test_score_model_and_health(client: Client) -> None:
    assert client.post("/score", json={"text": "abc"}).json() == {
        "bits_per_byte": 2.5,
        "scored_bytes": 2,
        "model": "demo@400",
    }
    assert client.get("/healthz").json() == {"status": "ok", "model": "demo@400"}
    model = client.get("/v1/model").json()
    assert (model["step"], model["bits_per_byte"]) == (400, 3.1)
    assert model["order0_bits_per_byte"] is None


@pytest.mark.parametrize(
    ("path", "body", "field", "says"),
    [
        ("/generate", {}, "prompt", "Field required"),
        ("/generate", {"prompt": ""}, "prompt", "at least 1 character"),
        ("/generate", {"prompt": 3}, "prompt", "valid string"),
        ("/generate", {"prompt": "a" * 70_000}, "prompt", "at most 65536 characters"),
        ("/generate", {"prompt": "a", "max_new_tokens": 0}, "max_new_tokens", "greater than"),
        ("/generate", {"prompt": "a", "max_new_tokens": 5000}, "max_new_tokens", "1024"),
        ("/generate", {"prompt": "a", "max_new_tokens": 1.5}, "max_new_tokens", "integer"),
        ("/generate", {"prompt": "a", "temperature": -1}, "temperature", "greater than"),
        ("/generate", {"prompt": "a", "top_k": 0}, "top_k", "greater than"),
        ("/generate", {"prompt": "a", "seed": 2**63}, "seed", "less than"),
        ("/generate", {"prompt": "a", "max_tokens": 5}, "max_tokens", "not permitted"),
        ("/score", {"text": "a"}, "text", "at least 2 bytes"),
        ("/score", {"text": None}, "text", "valid string"),
        ("/score", [], "body", "valid"),
    ],
)
def test_a_bad_body_names_field_problem_and_a_good_one(
    client: Client, path: str, body: Any, field: str, says: str
) -> None:
    answer = client.post(path, json=body)
    assert answer.status_code == 422
    (problem,) = answer.json()["detail"]
    assert problem["field"] == field
    assert says in problem["problem"]
    assert len(problem["given"]) <= 80
    assert client.post(path, json=answer.json()["example"]).status_code == 200


@pytest.mark.parametrize(
    "raw",
    [
        b'{"prompt": "\\ud800"}',  # half a surrogate pair: no text
        b'{"prompt": "a", "temperature": NaN}',
        b'{"prompt": "a", "temperature": Infinity}',
        b"{not json",
        b"\xff\xfe",
        b"",
    ],
)
def test_a_body_that_is_no_json_text_is_a_422_too(client: Client, raw: bytes) -> None:
    answer = client.post("/generate", content=raw)
    assert answer.status_code == 422
    assert json.loads(answer.content)["detail"]


def test_openapi_describes_every_route(client: Client) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    assert set(paths) == {"/generate", "/score", "/healthz", "/v1/model", "/metrics"}
    assert client.get("/docs").status_code == 200


def test_an_answer_says_which_variant_gave_it(client: Client) -> None:
    usual = client.post("/score", json={"text": "abc"}).headers
    assert usual["x-rayburst-variant"] == "fp32"
    assert "x-rayburst-degraded" not in usual
    degraded = client.post("/score", json={"text": "under overload"}).headers
    assert degraded["x-rayburst-variant"] == "int8"
    assert degraded["x-rayburst-degraded"] == "0.9850"
    assert client.get("/metrics").content == b"some 1.0\n"


def test_what_is_refused_is_told_when_to_ask_again(client: Client) -> None:
    refused = client.post("/score", json={"text": "too much"})
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "2")
    assert refused.json() == {"error": "it would take 9 s", "status": 503, "retry_after_s": 1.5}
