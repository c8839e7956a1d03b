"""Text generation on a real Ray Serve behind its HAProxy: texts, streams, clients that leave."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import ray
import requests
import torch
from generation_client import beside_each_other, leaves_in_the_middle, whole_texts

from rayburst.errors import ModelError
from rayburst.models import ModelRegistry
from rayburst.serve.deploy import delete, deploy
from rayburst.serve.generate import ray_llm
from rayburst.serve.generate.app import LLMArgs, build

from .conftest import Head, Trained

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def url(fast_head: Head, trained: Trained) -> Iterator[str]:
    """It serves a published version, by its alias."""
    models = ModelRegistry.open(trained.store_uri)
    models.promote(models.publish(trained.newer, name="written").ref)
    app = {
        "name": "llm",
        "route_prefix": "/llm",
        "import_path": "serve_apps.llm:app",
        "args": {"version": "written@production", "name": "demo", "cpus": 0.1, "max_running": 8},
    }
    http = {"host": "127.0.0.1", "port": fast_head.serve_port}
    made = deploy(fast_head.dashboard_url, fast_head.token, app=app, http=http, timeout_s=150)
    yield made.url
    delete(fast_head.dashboard_url, fast_head.token, name="llm")


def test_many_clients_get_the_texts_that_the_model_writes_alone(url: str, trained: Trained) -> None:
    torch.set_num_threads(1)  # as the replica has it
    with ThreadPoolExecutor(20) as pool:
        texts = list(pool.map(lambda n: beside_each_other(url, n), range(20)))
    assert texts == whole_texts(trained.model, 20)
    named = requests.get(f"{url}/v1/models", timeout=30).json()["data"]
    assert [row["id"] for row in named] == ["demo", "written@1"]


def test_a_client_that_leaves_its_stream_frees_its_place(url: str) -> None:
    leaves_in_the_middle(url, stream=True)


def test_ray_serve_llm_takes_the_config_and_says_what_is_missing() -> None:
    """The config is read by Ray's own class; without vLLM its public module cannot be loaded."""
    from ray.llm._internal.serve.core.configs.llm_config import LLMConfig

    args = LLMArgs(
        model="Qwen/Qwen2.5-7B-Instruct", name="qwen", gpus=2, accelerator="L4", context=8192
    )
    config = LLMConfig(**ray_llm.llm_config(args))
    assert config.model_loading_config.model_id == "qwen"
    assert config.model_loading_config.model_source == "Qwen/Qwen2.5-7B-Instruct"
    assert config.engine_kwargs["tensor_parallel_size"] == 2
    assert str(config.accelerator_type) == "L4"
    bucket = LLMConfig(**ray_llm.llm_config(LLMArgs(model="s3://models/qwen")))
    assert bucket.model_loading_config.model_source.bucket_uri == "s3://models/qwen"
    with pytest.raises(ModelError, match=r"Install 'ray\[llm\]'.*checkpoint="):
        build(args)


def test_ray_serve_llm_has_the_same_routes() -> None:
    ingress = Path(ray.__file__).parent / "llm/_internal/serve/core/ingress/ingress.py"
    routes = re.findall(r"app\.(?:get|post)\(\s*\"(/v1/[\w/]+)\"", ingress.read_text())
    assert {"/v1/completions", "/v1/models"} <= set(routes)
