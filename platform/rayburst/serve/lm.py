"""The language model as a Ray Serve application; `serve_apps/lm.py` hands it to Serve.

    serve run serve_apps.lm:app checkpoint=s3://bucket/runs/demo
    serve deploy serve_apps/lm.yaml

Each replica loads the checkpoint by its address. Texts are written together, token by token
(rayburst.serve.generate); those to score are computed in batches. Serve's access log is off: it
costs more than a small model does. Who may ask is not decided here; the proxy listens on loopback
unless its options say otherwise.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import torch
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve.schema import LoggingConfig

from rayburst.serve import decode
from rayburst.serve.generate.engine import Engine, EngineOptions
from rayburst.serve.generate.request import Request
from rayburst.serve.generate.service import GenerationService
from rayburst.serve.lm_api import GenerateRequest, ModelInfo, build_api
from rayburst.serve.locate import locate
from rayburst.train.trained import load_model

__all__ = ["LMArgs", "LanguageModel", "build"]

Item = TypeVar("Item")
Result = TypeVar("Result")


class LMArgs(BaseModel):
    """Arguments of the application, from `args:` in its YAML or `key=value` words."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    checkpoint: str | None = Field(
        default=None,
        description="address of a checkpoint or a run; else RAYBURST_MODEL; else the newest run",
    )
    max_batch: int = Field(
        default=32, ge=1, le=1024, description="texts written together, texts scored together"
    )
    batch_wait_ms: float = Field(
        default=5.0, ge=0, le=1000, description="a text to score waits for others"
    )
    replicas: int = Field(default=1, ge=1, description="copies of the model")
    cpus: float = Field(default=1.0, ge=0, description="CPUs a replica asks Ray for")
    gpus: float = Field(default=0.0, ge=0, description="GPUs a replica asks Ray for")


class LanguageModel:
    """One replica: a loaded model behind HTTP."""

    def __init__(self, args: LMArgs) -> None:
        torch.set_num_threads(max(1, int(args.cpus)))
        model, meta = load_model(locate(args.checkpoint, os.environ))
        self._model = model.to("cuda" if args.gpus and torch.cuda.is_available() else "cpu")
        self._info = _model_info(meta, parameters=model.parameter_count)
        self._rows_at_once = args.max_batch
        engine = Engine(self._model, EngineOptions(max_running=args.max_batch))
        # Serve lets so many in, so none is refused here.
        self._texts = GenerationService(engine, max_waiting=_ongoing(args))
        self._score = _batched(self._score_all, args)

    @property
    def info(self) -> ModelInfo:
        """The model that answers."""
        return self._info

    async def generate(self, request: GenerateRequest, seed: int) -> bytes:
        """The bytes that follow the prompt; a caller that leaves frees its place at once."""
        written = await self._texts.write(
            Request(
                prompt=request.prompt.encode(),
                max_tokens=request.max_new_tokens,
                temperature=request.temperature,
                top_k=request.top_k,
                seed=seed,
            )
        )
        return written.data

    async def score(self, text: bytes) -> tuple[float, int]:
        """Bits per byte and bytes scored, computed together with other requests."""
        result = await self._score(text)
        return result.bits_per_byte, result.scored_bytes

    async def check_health(self) -> None:
        """Serve replaces the replica when this raises: the model must still compute."""
        await self._texts.check()

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Serve calls this once the model is loaded."""
        return build_api(self)

    def _score_all(self, texts: list[bytes]) -> list[decode.Score]:
        return decode.score(self._model, texts, rows_at_once=self._rows_at_once)


def build(args: LMArgs) -> Any:
    """The Serve application for `args`.

    Where the fleet's store is known, "newest" is settled here, once for all replicas.
    """
    if args.checkpoint is None and "RAYBURST_STORE" in os.environ:
        args = args.model_copy(update={"checkpoint": locate(None, os.environ)})
    deployment = serve.deployment(
        serve.ingress()(LanguageModel),
        name="LanguageModel",
        num_replicas=args.replicas,
        ray_actor_options={"num_cpus": args.cpus, "num_gpus": args.gpus},
        max_ongoing_requests=_ongoing(args),
        health_check_period_s=5,
        logging_config=LoggingConfig(enable_access_log=False),
        max_constructor_retry_count=2,  # what does not load twice will not at the 20th try
    )
    return deployment.bind(args)


def _ongoing(args: LMArgs) -> int:
    """Requests on a replica: some are written, others wait for their place."""
    return 4 * args.max_batch


def _batched(
    work: Callable[[list[Item]], list[Result]], args: LMArgs
) -> Callable[[Item], Awaitable[Result]]:
    """`work` for one item at a time, batched by Serve and run off the event loop."""

    async def run(items: list[Item]) -> list[Result]:
        return await asyncio.to_thread(work, items)

    run.__name__ = work.__name__  # Serve's metrics name the batch by it
    batched: Callable[[Item], Awaitable[Result]] = serve.batch(
        max_batch_size=args.max_batch, batch_wait_timeout_s=args.batch_wait_ms / 1000
    )(run)
    return batched


def _model_info(meta: dict[str, Any], *, parameters: int) -> ModelInfo:
    run, step = meta.get("run"), meta.get("step")
    return ModelInfo(
        version=f"{run or 'unnamed'}@{'unknown' if step is None else step}",
        uri=meta["uri"],
        run=run,
        step=step,
        bits_per_byte=meta.get("val_bits_per_byte"),
        order0_bits_per_byte=meta.get("order0_bits_per_byte"),
        parameters=parameters,
        block_size=meta["config"]["block_size"],
    )
