"""`serve_apps/llm.py`: an OpenAI-compatible API, by rayburst's engine or by Ray Serve LLM.

    serve run serve_apps.llm:app checkpoint=s3://bucket/runs/demo        # the built-in GPT
    serve run serve_apps.llm:app version=gpt@production                  # a published one
    serve run serve_apps.llm:app model=Qwen/Qwen2.5-7B-Instruct          # vLLM, on a GPU

The same clients can ask both: POST /v1/completions, GET /v1/models. The built-in GPT is a served
model like any other (served.py): keys, tenants, rates, /metrics and /healthz are those of all.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncGenerator, Callable
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from starlette.routing import Route

from rayburst.serve.endpoint import Endpoint
from rayburst.serve.generate import ray_llm
from rayburst.serve.generate.completions import (
    CompletionRequest,
    completion,
    completion_routes,
    deltas,
)
from rayburst.serve.generate.engine import Engine, EngineOptions
from rayburst.serve.generate.service import GenerationService
from rayburst.serve.options import Replicas
from rayburst.serve.published import Asked, load_served, settled
from rayburst.serve.served import model

__all__ = ["Completions", "LLMArgs", "build"]

_PROMISE_MS = 120_000  # a text takes as long as it is long: this is for those that wait


class LLMArgs(BaseModel):
    """Arguments of the application, from `args:` in its YAML or `key=value` words."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str | None = Field(
        default=None,
        description="a Hugging Face id or a bucket of its files: served by Ray Serve LLM",
    )
    checkpoint: str | None = Field(
        default=None,
        description="of the built-in GPT, or a run; else RAYBURST_MODEL; else the newest run",
    )
    version: str | None = Field(
        default=None, description="a published one instead: gpt@3, gpt@production, or gpt"
    )
    variant: str | None = Field(default=None, description="of the version; else by its table")
    name: str | None = Field(default=None, min_length=1, description="what clients call it")
    max_running: int = Field(default=32, ge=1, le=1024, description="texts written together")
    cache_tokens: int | None = Field(
        default=None, ge=1, description="of the paged cache; none: no text ever has to wait for it"
    )
    replicas: int = Field(default=1, ge=1, description="copies of the model")
    floor: int = Field(
        default=0, ge=0, description="so many of them never on spot; the others want spot"
    )
    cpus: float = Field(default=1.0, ge=0, description="CPUs a replica asks Ray for")
    gpus: float = Field(default=0.0, ge=0, description="GPUs a replica asks for; vLLM: at least 1")
    accelerator: str | None = Field(default=None, description="type of GPU for vLLM, as L4")
    context: int | None = Field(default=None, ge=16, description="vLLM: tokens it reads at most")

    @model_validator(mode="after")
    def _one_model(self) -> LLMArgs:
        ways = {"model": self.model, "checkpoint": self.checkpoint, "version": self.version}
        given = [f"{way}={value!r}" for way, value in ways.items() if value is not None]
        if len(given) > 1:
            raise ValueError(
                f"{' and '.join(given)} name {len(given)} models: give model for Ray Serve LLM, or "
                "checkpoint or version for the built-in GPT"
            )
        if self.variant is not None and self.version is None:
            raise ValueError(f"variant={self.variant!r} is of no version: add version=NAME@NUMBER")
        if self.model is None and (self.accelerator or self.context):
            raise ValueError(
                "accelerator and context are for Ray Serve LLM: name a model=, or leave them out"
            )
        if self.model is not None and self.floor:
            raise ValueError(
                f"floor={self.floor} is for the built-in GPT; Ray Serve LLM places its replicas "
                "by itself: leave it out"
            )
        if self.floor > self.replicas:
            raise ValueError(
                f"floor={self.floor} is more than replicas={self.replicas}: give floor at most "
                f"{self.replicas}, or replicas={self.floor}"
            )
        if self.model is not None and self.cache_tokens is not None:
            raise ValueError(
                "cache_tokens is for the built-in GPT; vLLM sizes its own: leave it out"
            )
        return self


class Completions:
    """The built-in GPT on one replica."""

    def load(self, args: LLMArgs) -> None:
        """Loads the checkpoint or the version and starts the engine."""
        torch.set_num_threads(max(1, int(args.cpus)))
        served = load_served(_asked(args), os.environ)
        gpt = served.model.to("cuda" if args.gpus and torch.cuda.is_available() else "cpu")
        self._names = (args.name, served.label) if args.name else (served.label,)
        options = EngineOptions(max_running=args.max_running)
        if args.cache_tokens is not None:
            least = max(args.cache_tokens, gpt.config.block_size)
            options = EngineOptions(
                max_running=args.max_running, blocks=-(-least // options.block_tokens)
            )
        self._service = GenerationService(Engine(gpt, options), max_waiting=32 * args.max_running)

    async def predict(self, batch: list[CompletionRequest]) -> list[dict[str, Any]]:
        """POST /predict: the same answer; who asks here shares no blocks."""
        return [
            await completion(self._service, one, model=self._names[0], salt=_unshared())
            for one in batch
        ]

    def stream(self, value: CompletionRequest) -> AsyncGenerator[dict[str, Any], None]:
        """POST /stream: the same pieces, without OpenAI's last line."""
        return deltas(self._service, value, model=self._names[0], salt=_unshared())

    def routes(self, endpoint: Endpoint) -> list[Route]:
        """OpenAI's routes, and the engine's figures on the metrics page."""
        for name, words in _GAUGES.items():
            endpoint.metrics.gauges[f"rayburst_generate_{name}"] = (words, self._reader(name))
        return completion_routes(self._service, endpoint, names=self._names)

    def _reader(self, name: str) -> Callable[[], float]:
        return lambda: float(getattr(self._service.stats, name))

    def check_health(self) -> None:
        """Serve replaces the replica when this raises; called in a thread."""
        asyncio.run(self._service.check())


_GAUGES = {
    "running": "Texts that are written now",
    "waiting": "Texts that wait for a place or for blocks",
    "blocks_free": "Blocks of the cache that can be taken",
    "blocks": "Blocks of the cache",
    "tokens": "Tokens written since the replica started",
    "preemptions": "Times that a text lost its blocks to an older one",
}


def build(args: LLMArgs) -> Any:
    """The Serve application for `args`."""
    if args.model is not None:
        return ray_llm.build(args)
    asked = settled(_asked(args), os.environ)  # "newest" and aliases, once for all replicas
    args = args.model_copy(update={"checkpoint": asked.checkpoint, "version": asked.version})
    replicas = Replicas(least=args.replicas, floor=args.floor, cpus=args.cpus, gpus=args.gpus)
    served = model(slo_ms=_PROMISE_MS, max_batch=1, slots=64, replicas=replicas)(Completions)
    return served.bind(args)


def _asked(args: LLMArgs) -> Asked:
    return Asked(checkpoint=args.checkpoint, version=args.version, variant=args.variant)


def _unshared() -> bytes:
    return secrets.token_bytes(16)
