"""The OpenAI-compatible interface over a real engine: bodies, streams, refusals, departures."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from support import wait_for
from trained_runs import save_model

from rayburst.errors import KeyRefusedError
from rayburst.serve.asgi import build_app
from rayburst.serve.codec import Codec
from rayburst.serve.endpoint import Endpoint
from rayburst.serve.generate import ray_llm
from rayburst.serve.generate.app import Completions, LLMArgs
from rayburst.serve.generate.completions import CompletionRequest
from rayburst.serve.options import ModelOptions
from rayburst.train.gpt import GPT

Send = Callable[[dict[str, Any]], Awaitable[None]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, GPT]:
    return save_model(f"file://{tmp_path_factory.mktemp('store')}/runs/demo", step=20)


@pytest.fixture(scope="module")
def loaded(trained: tuple[str, GPT]) -> Completions:
    made = Completions()
    made.load(LLMArgs(checkpoint=trained[0], name="tiny", max_running=4))
    return made


class Gate:
    """Lets those in that have the key."""

    def tenant(self, headers: Any, now_s: float) -> str:
        if headers.get(b"authorization") != b"Bearer yes":
            raise KeyRefusedError("no key that works", status=401)
        return "ads"


class Client:
    """Speaks ASGI to the application, as Serve does; may leave in the middle."""

    def __init__(self, model: Completions) -> None:
        options = ModelOptions(slo_ms=60_000, max_batch=1, slots=8)
        self.endpoint = Endpoint(
            model, options, Codec.of(Completions), name="Completions", gate=Gate()
        )
        self.app = build_app(self.endpoint)
        self.status, self.body = 0, b""

    def ask(self, path: str = "/v1/completions", *, key: str = "yes", **body: Any) -> Any:
        raw = json.dumps(body).encode()
        asyncio.run(self.run("POST" if body else "GET", path, raw, key=key))
        return json.loads(self.body) if self.body[:1] == b"{" else events(self.body)

    async def run(
        self, method: str, path: str, body: bytes, *, key: str = "yes", leaves: bool = False
    ) -> None:
        """With `leaves` the client goes at once (no stream), or after the first piece."""
        self.status, self.body = 0, b""
        gone = asyncio.Event()
        sent = iter([{"type": "http.request", "body": body}])

        async def receive() -> dict[str, Any]:
            for message in sent:
                return message
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            self.status = message.get("status", self.status)
            self.body += message.get("body", b"")
            if self.body and leaves:
                gone.set()

        scope = {
            "type": "http", "method": method, "path": path, "raw_path": path.encode(),
            "query_string": b"", "root_path": "", "scheme": "http", "http_version": "1.1",
            "headers": [(b"authorization", f"Bearer {key}".encode())], "server": ("test", 80),
            "asgi": {"version": "3.0", "spec_version": "2.3"},
        }  # fmt: skip
        if leaves and b'"stream": true' not in body:
            gone.set()
        await self.app(scope, receive, send)


def events(body: bytes) -> list[Any]:
    told = [event for event in body.decode().split("\n\n") if event.startswith("data: ")]
    lines = [event.removeprefix("data: ") for event in told]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


@pytest.fixture
def client(loaded: Completions) -> Client:
    return Client(loaded)


def own(model: GPT, prompt: bytes, number: int) -> str:
    idx = torch.tensor([list(prompt)])
    made = model.generate(idx, number, temperature=0.0)
    return bytes(made[0, len(prompt) :].tolist()).decode(errors="replace")


def test_a_completion_is_the_model_s_own_text(client: Client, trained: tuple[str, GPT]) -> None:
    made = client.ask(model="tiny", prompt="def f", max_tokens=12, temperature=0)
    assert client.status == 200
    assert made["id"].startswith("cmpl-")
    assert (made["object"], made["model"]) == ("text_completion", "tiny")
    assert made["choices"] == [
        {
            "index": 0,
            "text": own(trained[1], b"def f", 12),
            "logprobs": None,
            "finish_reason": "length",
        }
    ]
    assert made["usage"] == {"prompt_tokens": 5, "completion_tokens": 12, "total_tokens": 17}


def test_a_stream_is_the_same_text_and_ends_with_done(client: Client) -> None:
    asked = {"prompt": ["ab", "xyz"], "max_tokens": 20, "n": 2, "seed": 5, "top_p": 0.9}
    whole = client.ask(**asked)
    assert [choice["index"] for choice in whole["choices"]] == [0, 1, 2, 3]
    assert len({choice["text"] for choice in whole["choices"]}) == 4
    pieces = client.ask(**asked, stream=True, stream_options={"include_usage": True})
    assert pieces[-1] == "[DONE]"
    assert pieces[-2]["choices"] == []
    assert pieces[-2]["usage"] == whole["usage"]
    assert len({piece["id"] for piece in pieces[:-1]}) == 1
    for index, choice in enumerate(whole["choices"]):
        told = [p["choices"][0] for p in pieces[:-2] if p["choices"][0]["index"] == index]
        assert "".join(one["text"] for one in told) == choice["text"]
        assert [one["finish_reason"] for one in told] == [None] * (len(told) - 1) + ["length"]
        assert len(told) > 1


def test_tokens_echo_and_stop(client: Client, trained: tuple[str, GPT]) -> None:
    whole = own(trained[1], b"def f", 30)
    stop = whole[10:12]
    made = client.ask(
        prompt=list(b"def f"), max_tokens=30, temperature=0, echo=True, stop=[stop, "no such"]
    )
    (choice,) = made["choices"]
    assert choice["text"] == "def f" + whole[: whole.find(stop)]
    assert choice["finish_reason"] == "stop"


def test_without_a_seed_texts_differ_and_with_one_they_do_not(client: Client) -> None:
    free = {client.ask(prompt="a", max_tokens=20)["choices"][0]["text"] for _ in range(4)}
    assert len(free) == 4
    bound = {client.ask(prompt="a", max_tokens=20, seed=3)["choices"][0]["text"] for _ in range(3)}
    assert len(bound) == 1


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({"prompt": ""}, 400, "prompt"),
        ({"prompt": [1, 256]}, 400, "prompt"),
        ({"prompt": "a", "max_tokens": 5000}, 400, "max_tokens"),
        ({"prompt": "a", "logprobs": 3}, 400, "logprobs"),
        ({"prompt": "a", "presence_penalty": 0.5}, 400, "presence_penalty"),
        ({"prompt": "a", "maxtokens": 3}, 400, "maxtokens"),
        ({"prompt": ["a", "b"], "n": 9}, 400, "ask for at most 16"),
        ({"prompt": ["a", "b"], "n": 9, "stream": True}, 400, "ask for at most 16"),
        ({"prompt": "a", "model": "gpt-5"}, 404, "there is: tiny, demo@20"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_openai_s_way(
    client: Client, body: dict[str, Any], status: int, says: str
) -> None:
    error = client.ask(**body)["error"]
    assert (client.status, error["code"], error["type"]) == (
        status,
        status,
        "invalid_request_error",
    )
    assert says in error["message"]


def test_values_that_change_nothing_are_taken(client: Client) -> None:
    made = client.ask(
        prompt="a", max_tokens=1, presence_penalty=0, frequency_penalty=0.0, logprobs=None,
        best_of=1, logit_bias={}, user="me", suffix=None, model="demo@20",
    )  # fmt: skip
    assert client.status == 200
    assert made["usage"]["completion_tokens"] == 1


def test_who_has_no_key_is_not_answered(client: Client) -> None:
    error = client.ask(prompt="a", key="no")["error"]
    assert (client.status, error["type"]) == (401, "authentication_error")


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_place(
    client: Client, loaded: Completions, stream: bool
) -> None:
    before = loaded._service.stats.tokens
    body = json.dumps({"prompt": ["ab", "cd"], "max_tokens": 1000, "stream": stream}).encode()
    asyncio.run(client.run("POST", "/v1/completions", body, leaves=True))
    assert (b'"text"' in client.body) == stream
    wait_for(
        lambda: loaded._service.stats.running == 0 or None, what="its places are free", timeout_s=10
    )
    stats = loaded._service.stats
    assert (stats.waiting, stats.blocks_free) == (0, stats.blocks)
    assert stats.tokens - before < 2000


def test_a_cancelled_request_frees_its_place_too(client: Client, loaded: Completions) -> None:
    """How Serve tells that a client has gone."""

    async def story() -> None:
        body = json.dumps({"prompt": "ab", "max_tokens": 1000}).encode()
        task = asyncio.create_task(client.run("POST", "/v1/completions", body))
        while not loaded._service.stats.running:
            await asyncio.sleep(0.001)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        assert task.cancelled()
        assert loaded._service.stats.running == 0

    asyncio.run(story())


def test_models_and_metrics(client: Client) -> None:
    assert [row["id"] for row in client.ask("/v1/models")["data"]] == ["tiny", "demo@20"]
    client.ask(prompt="a", max_tokens=1)
    asyncio.run(client.run("GET", "/metrics", b""))
    page = client.body.decode()
    assert 'rayburst_serve_requests_total{model="Completions",status="200"} 1.0' in page
    assert "rayburst_generate_blocks_free" in page


def test_the_served_routes_answer_too(client: Client, loaded: Completions) -> None:
    made = client.ask("/predict", prompt="ab", max_tokens=5, temperature=0)
    pieces = client.ask("/stream", prompt="ab", max_tokens=5, temperature=0)
    assert "".join(p["choices"][0]["text"] for p in pieces) == made["choices"][0]["text"]
    loaded.check_health()


def test_arguments_name_one_model() -> None:
    for wrong, says in [
        ({"model": "a/b", "checkpoint": "s3://b/r"}, "name 2 models"),
        ({"version": "gpt", "checkpoint": "s3://b/r"}, "name 2 models"),
        ({"variant": "int8"}, "of no version"),
        ({"accelerator": "L4"}, "name a model="),
        ({"model": "a/b", "cache_tokens": 99}, "leave it out"),
        ({"replicas": 2, "floor": 3}, "give floor at most 2, or replicas=3"),
        ({"model": "a/b", "floor": 1}, "places its replicas by itself"),
        ({"port": 1}, "port"),
    ]:
        with pytest.raises(ValidationError, match=says):
            LLMArgs.model_validate(wrong)


def test_what_ray_serve_llm_is_told() -> None:
    args = LLMArgs(model="s3://b/qwen", name="qwen", gpus=2, context=8192, accelerator="L4")
    assert ray_llm.llm_config(args) == {
        "model_loading_config": {"model_id": "qwen", "model_source": {"bucket_uri": "s3://b/qwen"}},
        "deployment_config": {"autoscaling_config": {"min_replicas": 1, "max_replicas": 1}},
        "engine_kwargs": {"tensor_parallel_size": 2, "max_num_seqs": 32, "max_model_len": 8192},
        "accelerator_type": "L4",
    }


def test_a_request_has_openai_s_names() -> None:
    """What https://platform.openai.com/docs/api-reference/completions lists, and top_k."""
    assert set(CompletionRequest.model_fields) == {
        "model", "prompt", "best_of", "echo", "frequency_penalty", "logit_bias", "logprobs",
        "max_tokens", "n", "presence_penalty", "seed", "stop", "stream", "stream_options",
        "suffix", "temperature", "top_p", "user", "top_k",
    }  # fmt: skip
